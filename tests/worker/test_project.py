"""What `ech-workers worker init` writes, through the type checker and the bundler."""

import re
from pathlib import Path

import pytest

from ech_workers.worker import create
from harness.worker_tools import WorkerTools

LARGEST_BUNDLE = 24 << 10


@pytest.mark.parametrize("seed", range(6))
def test_every_layout_passes_the_strict_type_checker_and_is_small(
    tools: WorkerTools, tmp_path: Path, seed: int
) -> None:
    project = create(tmp_path / "project", seed=seed)
    assert tools.check_types(project.directory) == ""
    out = tmp_path / "worker.js"
    tools.bundle(project.directory / project.main, out)
    assert out.stat().st_size <= LARGEST_BUNDLE


def test_two_bundles_differ_in_more_than_names(tools: WorkerTools, tmp_path: Path) -> None:
    """Order and names: no long piece of code of the one is in the other."""
    bundles = []
    for seed in (1, 2):
        project = create(tmp_path / str(seed), seed=seed)
        out = tmp_path / f"{seed}.js"
        tools.bundle(project.directory / project.main, out)
        bundles.append(out.read_text())
    pieces = [piece for piece in re.split(r"[;{}]", bundles[0]) if len(piece) > 60]
    assert len(pieces) > 20
    assert sum(piece in bundles[1] for piece in pieces) < len(pieces) / 2
