"""Installs files of dist/ as a user of this machine would, and tries them: `make run-here`, `make run-sdist`.

    python scripts/run_here.py wheel|sdist

Each file is installed into a fresh environment, with nothing of the build's own environment in the way: pip has to bring what the
source distribution needs beyond the compilers. Then `ech-workers demo --check` has to pass. A warning of the build fails.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
# Seconds: a build on two cores takes 4 minutes, the check of the demo 10 s.
INSTALLATION_LIMIT = 1800.0
RUN_LIMIT = 180.0

# What the Makefile sets for its own builds.
OF_THE_BUILD = re.compile(r"(VIRTUAL_ENV|CMAKE_.*|CCACHE_.*|RUSTC_WRAPPER|PIP_QUIET|PYTHON.*|MAKE.*|MFLAGS)$")

# Run by the fresh environment's Python: its pip knows which wheels it takes.
SUPPORTED = "from pip._vendor.packaging.tags import sys_tags; print(*sys_tags(), sep='\\n')"


def main(arguments: list[str]) -> int:
    if arguments not in (["wheel"], ["sdist"]):
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory(prefix="ech-workers-run-") as folder:
        files = wheels(Path(folder) / "asked") if arguments == ["wheel"] else sorted(DIST.glob("*.tar.gz"))
        if not files:
            print(f"dist/ has no {arguments[0]} for this machine: `make wheel`, or `make wheels`")
            return 2
        failed = [file.name for number, file in enumerate(files) if not works(file, Path(folder) / str(number))]
    print(f"failed: {', '.join(failed)}" if failed else f"works: {', '.join(file.name for file in files)}")
    return 1 if failed else 0


def wheels(environment: Path) -> list[Path]:
    """Those of dist/ that pip takes on this machine."""
    said = subprocess.run([fresh(environment), "-c", SUPPORTED], check=True, stdout=subprocess.PIPE, text=True).stdout
    supported = set(said.split())
    return [file for file in sorted(DIST.glob("*.whl")) if tags(file.name) & supported]


def tags(wheel: str) -> set[str]:
    """The tags of a wheel's name: each kind of Python, interface and platform with each."""
    pythons, interfaces, platforms = (part.split(".") for part in wheel.removesuffix(".whl").split("-")[-3:])
    return {f"{python}-{interface}-{name}" for python in pythons for interface in interfaces for name in platforms}


def fresh(folder: Path) -> Path:
    """The Python of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def works(file: Path, folder: Path) -> bool:
    python = fresh(folder)
    print(f"{file.name}: installing", flush=True)
    # Verbose, because pip shows what a build says only then; without the cache, where the wheel of an earlier run may be.
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--verbose",
        "--no-cache-dir",
        "--disable-pip-version-check",
        file,
    ]
    installed = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALLATION_LIMIT,
    )
    if installed.returncode:
        print("\n".join(installed.stdout.splitlines()[-60:]))
        return False
    if warnings := [line.strip() for line in installed.stdout.splitlines() if re.search(r"\bwarning\b", line, re.I)]:
        print("\n".join(["the installation warns:", *warnings]))
        return False
    for words in (["--version"], ["demo", "--check"]):
        ended = subprocess.run(
            [folder / "bin" / "ech-workers", *words], cwd=folder, env=environment(), timeout=RUN_LIMIT
        )
        if ended.returncode:
            print(f"{file.name}: `ech-workers {' '.join(words)}` ended with {ended.returncode}")
            return False
    return True


def environment() -> dict[str, str]:
    """A user's: without what the Makefile sets, and without the build's own programs on PATH."""
    kept = {name: value for name, value in os.environ.items() if not OF_THE_BUILD.match(name)}
    places = kept.get("PATH", os.defpath).split(os.pathsep)
    kept["PATH"] = os.pathsep.join(place for place in places if not Path(place).is_relative_to(ROOT))
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
