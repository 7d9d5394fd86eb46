"""The table of promises and their tests names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_table_names_exists() -> None:
    table = (ROOT / "tests" / "chaos" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./]+)::(\w+)`", table)
    assert len(named) > 30
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"\b(?:fn|def) {name}\(", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []
