"""What is said of every crate of the workspace is said of each."""

import tomllib
from pathlib import Path

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
