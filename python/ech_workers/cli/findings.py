"""A line a finding, for ``demo --check`` and ``check``."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click

__all__ = ["show"]

# What stands before the text: two spaces, the mark, the layer, the time.
_INDENT = 30


def show(passed: bool | None, layer: str, what: str, *, ms: float | None = None, advice: str | None = None) -> None:
    """Prints ``✓ layer  12.3 ms  what``; passed is None for what was not tried, or cannot be judged."""
    good, bad, neither = ("✓", "✗", "·") if _takes_unicode() else ("ok", "NO", "--")
    mark, colour = (neither, None) if passed is None else (good, "green") if passed else (bad, "red")
    time = " " * 11 if ms is None else f"{ms:8.1f} ms"
    first, *others = _wrapped(what)
    click.echo(f"  {click.style(mark, fg=colour)} {layer:<12} {time}  {first}")
    for line in others:
        click.echo(f"{'':{_INDENT}}{line}")
    if advice:
        for line in _wrapped(advice):
            click.echo(f"{'':{_INDENT}}{click.style(line, dim=True)}")


def _wrapped(text: str) -> list[str]:
    """The text in lines that fit a terminal, broken between words alone; one line where the output is none."""
    if not sys.stdout.isatty():
        return [text]
    room = max(20, shutil.get_terminal_size().columns - _INDENT)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def _takes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
