"""A line a finding, for ``demo --check`` and ``check``."""

from __future__ import annotations

import sys

import click

__all__ = ["show"]


def show(passed: bool | None, layer: str, what: str, *, ms: float | None = None, advice: str | None = None) -> None:
    """Prints ``✓ layer  12.3 ms  what``; passed is None for what was not tried, or cannot be judged."""
    good, bad, neither = ("✓", "✗", "·") if _takes_unicode() else ("ok", "NO", "--")
    mark, colour = (neither, None) if passed is None else (good, "green") if passed else (bad, "red")
    time = " " * 11 if ms is None else f"{ms:8.1f} ms"
    click.echo(f"  {click.style(mark, fg=colour)} {layer:<12} {time}  {what}")
    if advice:
        click.echo(f"{'':30}{click.style(advice, dim=True)}")


def _takes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
