"""Writes a Worker's project from the template. No two are alike in names, paths, page and layout of the code, so that nothing
in a deployment tells which family it is of."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from ech_workers.errors import ConfigError
from ech_workers.worker import layout, page, words

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

__all__ = ["Project", "create"]

_TEMPLATE_NAME = "project"
_TEMPLATE_PATH = "/entry"


@dataclass(frozen=True)
class Project:
    """What was written."""

    directory: Path
    name: str
    """Of the Worker: the first label of its host name."""
    entry_path: str
    """Where clients connect."""
    main: str
    """The entry module, relative to the directory."""
    variables: dict[str, str]
    """What each of the template's variables is called here."""


def create(directory: Path, *, name: str | None = None, seed: int | None = None) -> Project:
    """Writes a project into a directory that is empty or does not exist. A seed gives the same project again.

    Raises ConfigError.
    """
    chance = random.Random(secrets.randbits(128) if seed is None else seed)  # noqa: S311  # no secret comes from it
    vocabulary = words.Vocabulary(chance)
    name = vocabulary.host_label() if name is None else name
    entry_path = vocabulary.path()
    variables = vocabulary.variables(layout.VARIABLES)
    code = layout.Layout(_texts("src", ".ts"), vocabulary, variables)

    files = {f"src/{file}": text for file, text in code.files.items()}
    files[f"src/{code.page_file}"] = page.write(chance)
    for source, target in (
        ("README.md", "README.md"),
        ("gitignore", ".gitignore"),
        ("package.json", "package.json"),
        ("package-lock.json", "package-lock.json"),
        ("tsconfig.json", "tsconfig.json"),
        ("wrangler.jsonc", "wrangler.jsonc"),
        ("test/worker.test.js", f"test/{code.main.removesuffix('.ts')}.test.js"),
    ):
        text = layout.rename(_read(source), variables)
        for before, after in (
            ("PROJECT_NAME", name),
            (f'"{_TEMPLATE_NAME}"', f'"{name}"'),
            (_TEMPLATE_PATH, entry_path),
            ("src/index.ts", f"src/{code.main}"),
            ('"src/page.html"', f'"src/{code.page_file}"'),
        ):
            text = text.replace(before, after)
        files[target] = text
    _write(directory, files)
    return Project(directory, name, entry_path, f"src/{code.main}", variables)


def _template() -> Traversable:
    return resources.files("ech_workers.worker") / "template"


def _read(path: str) -> str:
    return _template().joinpath(*path.split("/")).read_text(encoding="utf-8")


def _texts(folder: str, suffix: str) -> dict[str, str]:
    """File name to text."""
    entries = (_template() / folder).iterdir()
    return {entry.name: entry.read_text(encoding="utf-8") for entry in entries if entry.name.endswith(suffix)}


def _write(directory: Path, files: dict[str, str]) -> None:
    try:
        taken = directory.exists() and any(directory.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot read {directory}: {error.strerror}", option="DIR") from None
    if taken:
        raise ConfigError(f"{directory} is not empty", option="DIR", advice="name a new directory")
    try:
        for path, text in files.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}", option="DIR") from None
