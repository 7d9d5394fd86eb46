"""Rust programs that only tests need: the examples of the crates."""

import json
import shutil
from pathlib import Path

from .built import ROOT
from .processes import run
from .requirements import missing

BUILD_TIMEOUT = 600.0


def example(package: str, name: str, *, checked: bool = True) -> Path:
    """Builds an example with the settings of `make test-rust`, which has built it when it ran before, or as it ships."""
    if shutil.which("cargo") is None:
        missing("cargo is not installed: see https://rustup.rs")
    built = run(
        *("cargo", *(("--config", "scripts/checked.toml") if checked else ())),
        *("build", "--release", "--locked", "--message-format=json"),
        *("-p", package, "--example", name),
        cwd=ROOT,
        timeout=BUILD_TIMEOUT,
    )
    assert built.returncode == 0, built.stderr
    [program] = {
        artifact["executable"]
        for artifact in map(json.loads, built.stdout.splitlines())
        if artifact.get("target", {}).get("name") == name
    }
    return Path(program)
