"""Which ech-workers this is: its version, the commit it was built of, and BoringSSL's."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ech_workers import _native

__all__ = ["commit", "told"]


def commit() -> str | None:
    """The commit that a release was built of, or that of the clone that this runs from; None: it is not known."""
    return _native.COMMIT or commit_of(Path(__file__).resolve().parents[2])


def commit_of(clone: Path) -> str | None:
    """What git says of a folder; None: it is no clone, or there is no git."""
    if not (clone / ".git").exists():
        return None
    try:
        described = subprocess.run(  # noqa: S603
            ["git", "-C", clone, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"],  # noqa: S607
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def told() -> str:
    """In one line."""
    made_of = commit()
    origin = f"commit {made_of}, " if made_of else ""
    return f"{_native.__version__} ({origin}{_native.BORINGSSL_REVISION})"
