"""The workflows: zizmor on what they allow, actionlint on what they say. Without actionlint and Go it says so and passes; in CI it must run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "tests"))

from harness.requirements import in_ci  # noqa: E402

ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"


def actionlint() -> Path | None:
    """The program, built by Go if it is not there; None without Go."""
    found = shutil.which("actionlint")
    if found is not None:
        return Path(found)
    folder = BIN.parent / "go"
    if shutil.which("go") is not None and not (folder / "actionlint").exists():
        subprocess.run(["go", "install", ACTIONLINT], env={**os.environ, "GOBIN": str(folder)}, check=True)
    return folder / "actionlint" if (folder / "actionlint").exists() else None


def complaints(*command: str | Path) -> str:
    """What a linter says when it does not pass."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ended.stdout + ended.stderr if ended.returncode else ""


def main() -> int:
    found = complaints(BIN / "zizmor", "--offline", "--no-progress", "--quiet", ".github")
    program = actionlint()
    if program is None:
        print(
            "workflows: not checked by actionlint, which needs Go: apt install golang, or see https://go.dev/doc/install"
        )
        if in_ci():
            return 1
    else:
        found += complaints(program, "-no-color")
    print(found.strip() or "workflows: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
