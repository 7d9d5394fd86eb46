"""rust/yamux against hashicorp/yamux, over one TCP connection: either opens the streams, either is client or server."""

from pathlib import Path

import pytest

from harness.cargo import example
from harness.processes import Processes, run


@pytest.fixture(scope="session")
def tcp_peer() -> Path:
    return example("ech-workers-yamux", "tcp_peer")


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("window", [256 << 10, 4 << 20], ids=["window-256K", "window-4M"])
def test_streams_that_we_open_come_back(
    processes: Processes, go_peers: dict[str, Path], tcp_peer: Path, side: str, window: int
) -> None:
    flags = ["-client"] if side == "server" else []
    go = processes.start(go_peers["yamux_peer"], "-listen", "127.0.0.1:0", "-window", str(window), *flags)
    address = go.wait_event("listening")["address"]
    done = run(tcp_peer, address, side, "50", str(2_000_003), timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr + go.output
    assert go.wait_event("session-end")["streams"] == 50


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(("streams", "size"), [(50, 2_000_003), (250, 1000), (1, 50_000_000), (5, 0)])
def test_streams_that_hashicorp_opens_come_back(
    processes: Processes, go_peers: dict[str, Path], tcp_peer: Path, side: str, streams: int, size: int
) -> None:
    flags = ["-client"] if side == "server" else []
    go = processes.start(
        go_peers["yamux_peer"], "-listen", "127.0.0.1:0", "-open", str(streams), "-size", str(size), *flags
    )
    address = go.wait_event("listening")["address"]
    done = run(tcp_peer, address, side, "0", "0", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert go.wait(30) == 0, go.output
    assert go.events("done")[0]["streams"] == streams
