"""The Worker's template: type checker (strict), linter and formatter. Without npm it says so and passes; in CI it must run."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import worker_tools  # noqa: E402
from harness.processes import run  # noqa: E402
from harness.requirements import in_ci  # noqa: E402


def main() -> int:
    try:
        tools = worker_tools.install()
    except worker_tools.UnavailableError as error:
        print(f"worker: not checked: {error}")
        return 1 if in_ci() else 0
    # Copies below node_modules' folder, where the type checker looks for types.
    copies = tools.modules.parent / "checked"
    shutil.rmtree(copies, ignore_errors=True)
    complaints = ""
    for source in (worker_tools.TEMPLATE, ROOT / "tests" / "worker"):
        copy = copies / source.relative_to(ROOT)
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
        complaints += tools.check_types(copy)
    linted = run(
        tools.biome,
        "check",
        "--error-on-warnings",
        "src",
        "test",
        cwd=worker_tools.TEMPLATE,
    )
    if linted.returncode:
        complaints += linted.stdout + linted.stderr
    print(complaints or "worker: types and style are clean")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
