"""The examples in deploy/ and the documentation's: their commands have only options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from ech_workers import cli

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for file in (ROOT / "deploy").rglob("*")
    if file.suffix in {".service", ".yaml"} or file.name == "Containerfile"
)


def options(command: str) -> set[str]:
    """The options of a command, by their names on the command line."""
    found = cli.commands.get_command(click.Context(cli.commands), command)
    assert found is not None
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_example_has_only_options_that_there_are(file: Path) -> None:
    # Comments may speak of other programs' options.
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    others = set()
    if file.name == "Containerfile":
        # Those of apt-get, useradd, pip and of the file itself.
        others = {option for option in used if option not in {"--of"}}
        assert "--of" in used
        assert "--of" in options("status")
    known = options("server") | options("proxy") | options("status") | {"--help"}
    assert used - others <= known
    assert used


def test_the_units_in_the_documentation_are_those_of_deploy() -> None:
    page = (ROOT / "docs" / "how-to" / "service.md").read_text("utf-8")
    shown = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    units = [(ROOT / "deploy" / "systemd" / name).read_text("utf-8") for name in UNITS]
    assert shown[: len(units)] == units


UNITS = ("ech-workers-server.socket", "ech-workers-server.service")
