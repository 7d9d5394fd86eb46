"""Programs that tests build or install, below target/: once for every process of a run, and again only when their sources change."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def building(name: str) -> Iterator[Path]:
    """The folder target/NAME, for this process alone until the end of the block."""
    folder = ROOT / "target" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder
