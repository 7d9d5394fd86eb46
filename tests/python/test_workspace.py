"""What is said of every crate of the workspace is said of each, and what `make test-plain` leaves behind."""

import os
import sys
import tomllib
from pathlib import Path

from harness.processes import run

ROOT = Path(__file__).parents[2]


def test_every_crate_is_tested_with_its_assertions_and_overflow_checks() -> None:
    crates = {
        str(tomllib.loads(manifest.read_text("utf-8"))["package"]["name"])
        for manifest in [*(ROOT / "rust").glob("*/Cargo.toml"), ROOT / "vendor" / "boringssl" / "Cargo.toml"]
    }
    # cargo does not run its tests: they are Python's.
    crates.remove("ech-workers-native")
    checked = tomllib.loads((ROOT / "scripts" / "checked.toml").read_text("utf-8"))["profile"]["release"]["package"]
    assert checked == {crate: {"debug-assertions": True, "overflow-checks": True} for crate in crates}


def test_an_environment_that_a_plain_run_has_made_can_be_used_afterwards(tmp_path: Path) -> None:
    """As in a fresh clone, where `make test-plain` makes .venv."""
    made = tmp_path / "made"
    # Not another program's stand-in for Python, and no environment's.
    places = os.pathsep.join([str(Path(sys.executable).resolve().parent), "/usr/bin", "/bin"])
    words = ("sh", ROOT / "scripts" / "plain.sh", "sh", "-c", "command -v curl; python3 -m venv --without-pip $0", made)
    done = run(*words, env={"PATH": places})
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert run(made / "bin" / "python", "-c", "print(1)").stdout == "1\n"
