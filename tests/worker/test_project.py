"""What `ech-workers worker init` writes, through the type checker and the bundler."""

import re
from pathlib import Path

import pytest
from websockets.sync.client import connect

from ech_workers.worker import create
from harness.authority import Authority
from harness.processes import Processes
from harness.tunnel import TOKEN
from harness.worker import NEW_DATE, Runtime, bundle
from harness.worker_tools import WorkerTools

LARGEST_BUNDLE = 24 << 10


@pytest.mark.parametrize("seed", range(6))
def test_every_layout_passes_the_strict_type_checker_is_small_and_runs(
    tools: WorkerTools,
    tmp_path: Path,
    processes: Processes,
    authority: Authority,
    targets: dict[str, int],
    seed: int,
) -> None:
    made = bundle(tools, tmp_path, seed)
    assert tools.check_types(made.project.directory) == ""
    assert made.file.stat().st_size <= LARGEST_BUNDLE
    runtime = Runtime(tmp_path / "runtime", processes, tools.workerd("new"), NEW_DATE, made.file, authority)
    names = made.project.variables
    _, port = runtime.start({names["TOKEN"]: TOKEN, names["ENTRY_PATH"]: made.project.entry_path})
    with connect(
        f"ws://127.0.0.1:{port}{made.project.entry_path}",
        subprotocols=[TOKEN],  # type: ignore[list-item]
        compression=None,
        proxy=None,
    ) as peer:
        peer.send(f"OPEN:127.0.0.1:{targets['echo']}")
        peer.send(b"hello")
        assert [peer.recv(timeout=20) for _ in range(2)] == ["CONNECTED", b"hello"]


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
