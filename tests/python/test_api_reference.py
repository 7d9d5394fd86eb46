"""The reference of the API is what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ech_workers

ROOT = Path(__file__).parents[2]


def reference() -> str:
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "scripts" / "api_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: str = module.reference()
    return made


def test_the_reference_is_made_from_the_docstrings() -> None:
    assert (ROOT / "docs" / "reference" / "api.md").read_text() == reference(), "run scripts/api_reference.py"


def test_everything_exported_is_described() -> None:
    described = reference() + (ROOT / "docs" / "reference" / "errors.md").read_text()
    for name in ech_workers.__all__:
        if not name.startswith("__"):
            assert f"{name}" in described, name
