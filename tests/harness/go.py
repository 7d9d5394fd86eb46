"""The Go peers in tests/interop/go."""

import os
import shutil
from pathlib import Path

from .built import building
from .processes import run
from .requirements import missing

SOURCE = Path(__file__).resolve().parent.parent / "interop" / "go"
BUILD_TIMEOUT = 600.0


def build() -> dict[str, Path]:
    """Builds every command whose sources have changed; name to program."""
    if shutil.which("go") is None:
        missing("go is not installed: apt install golang (1.24 or later), or see https://go.dev/doc/install")
    commands = sorted(entry.name for entry in (SOURCE / "cmd").iterdir())
    with building("go-peers") as folder:
        built = run("go", "build", "-o", f"{folder}{os.sep}", "./cmd/...", cwd=SOURCE, timeout=BUILD_TIMEOUT)
    if built.returncode != 0:
        missing(f"the Go peers cannot be built: {built.stderr.strip()}")
    return {command: folder / command for command in commands}
