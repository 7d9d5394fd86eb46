"""The Worker's yamux, in the real runtime, against hashicorp/yamux and rust/yamux: a random plan at both ends, and agreement afterwards."""

import json
import random
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from harness.authority import Authority
from harness.cargo import example
from harness.processes import Processes, run
from harness.splice import Splice
from harness.worker import NEW_DATE, OLD_DATE, Runtime
from harness.worker_tools import WorkerTools
from harness.yamux_plan import KIB, MIB, Stream, assert_agreed, by_id, random_plan

TIMEOUT = 60.0
PEER = Path(__file__).with_name("yamux_peer.ts")


@pytest.fixture(scope="session")
def peer_script(tools: WorkerTools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("yamux_peer") / "worker.js"
    tools.bundle(PEER, out)
    return out


@pytest.fixture(scope="session")
def rust_peer() -> Path:
    return example("ech-workers-yamux", "plan_peer")


class Session:
    """Runs both ends and compares what they say."""

    def __init__(self, processes: Processes, port: int, go: Path, rust: Path, folder: Path) -> None:
        self.processes = processes
        self.port = port
        self.go = go
        self.rust = rust
        self.folder = folder

    def with_go(
        self, plan: Sequence[Stream], side: str, *flags: str, window: int = 256 * KIB
    ) -> dict[int, tuple[Stream, Any, Any]]:
        """Stream id to its plan, what the Worker reports and what Go reports."""
        file = self.folder / "peer.plan"
        file.write_text(
            "".join(
                f"{'theirs' if s.opened_by_us else 'ours'} {s.from_peer} {s.peer_stops} {s.peer_delays}\n" for s in plan
            )
        )
        go = self.processes.start(self.go, "-plan", file, *(["-client"] if side == "server" else []), *flags)
        port = int(go.wait_event("listening")["address"].rpartition(":")[2])
        told = self._work(port, plan, side, window, ends=False)
        assert go.wait(30) == 0, go.output
        assert go.events("session") == [{"event": "session", "streams": 0}], "Go has streams left"
        return self._compare(plan, side, told, {line["id"]: line for line in go.events("stream")})

    def with_rust(
        self, plan: Sequence[Stream], side: str, *, window: int = 256 * KIB
    ) -> dict[int, tuple[Stream, Any, Any]]:
        file = self.folder / "peer.plan"
        file.write_text(
            "".join(f"{'theirs' if s.opened_by_us else 'ours'} {s.from_peer} {s.peer_stops} -1\n" for s in plan)
        )
        other: Literal["client", "server"] = "server" if side == "client" else "client"
        with Splice() as splice, ThreadPoolExecutor(1) as pool:
            rust = pool.submit(run, self.rust, f"127.0.0.1:{splice.ports[0]}", other, file, timeout=TIMEOUT)
            told = self._work(splice.ports[1], plan, side, window, ends=True)
            done = rust.result()
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines[-1]["streams"] == 0, "Rust has streams left"
        return self._compare(plan, side, told, {line["id"]: line for line in lines[:-1]})

    def _work(self, port: int, plan: Sequence[Stream], side: str, window: int, *, ends: bool) -> Any:
        job = {
            "port": port,
            "side": side,
            "window": window,
            "ends": ends,
            "plan": [
                {"ours": s.opened_by_us, "bytes": s.from_us, "stopped": s.we_stop, "resetAfter": s.reset_after}
                for s in plan
            ],
        }
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", json.dumps(job).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)

    def _compare(
        self, plan: Sequence[Stream], side: str, told: Any, peers: dict[int, Any]
    ) -> dict[int, tuple[Stream, Any, Any]]:
        assert told["left"] == 0, "the Worker has streams left"
        ours = {line["id"]: line for line in told["streams"]}
        assert ours.keys() == peers.keys()
        return {stream: (s, ours[stream], peers[stream]) for stream, s in by_id(list(plan), side).items()}


@pytest.fixture(params=["new", "old"])
def session(
    request: pytest.FixtureRequest,
    processes: Processes,
    tools: WorkerTools,
    peer_script: Path,
    go_peers: dict[str, Path],
    rust_peer: Path,
    authority: Authority,
    tmp_path: Path,
) -> Session:
    version: str = request.param
    date = NEW_DATE if version == "new" else OLD_DATE
    runtime = Runtime(tmp_path / "runtime", processes, tools.workerd(version), date, peer_script, authority)
    _, port = runtime.start({})
    return Session(processes, port, go_peers["yamux_plan"], rust_peer, tmp_path)


@pytest.mark.parametrize("peer", ["go", "rust"])
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("seed", range(3))
def test_both_ends_agree_on_a_random_plan(session: Session, peer: str, side: str, seed: int) -> None:
    plan = random_plan(100 + seed)
    window = random.Random(seed).choice([64 * KIB, 100_000, 256 * KIB])
    both = session.with_go if peer == "go" else session.with_rust
    for expected, ours, theirs in both(plan, side, window=window).values():
        if ours["reset_by_us"]:
            assert 0 <= expected.reset_after <= ours["received"]
        else:
            assert_agreed(expected, ours, theirs)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_stopped_reader_at_either_end_holds_up_nobody_else(session: Session, side: str) -> None:
    plan = [
        Stream(opened_by_us=True, from_us=6 * MIB, from_peer=0, peer_stops=1000),
        Stream(opened_by_us=True, from_us=0, from_peer=6 * MIB, we_stop=1000),
        *(Stream(opened_by_us=bool(n % 2), from_us=2 * MIB, from_peer=2 * MIB) for n in range(10)),
    ]
    for expected, ours, theirs in session.with_go(plan, side).values():
        assert_agreed(expected, ours, theirs)


def test_a_half_closed_stream_carries_the_late_answer(session: Session) -> None:
    plan = [Stream(opened_by_us=False, from_us=10, from_peer=3 * MIB, peer_delays=500) for _ in range(20)]
    for expected, ours, theirs in session.with_go(plan, "server").values():
        assert_agreed(expected, ours, theirs)


def test_the_reset_of_a_peer_that_closed_and_waited_takes_nothing_back(session: Session) -> None:
    """hashicorp resets a stream that it closed when the other direction is not closed within StreamCloseTimeout."""
    plan = [
        Stream(opened_by_us=True, from_us=6 * MIB, from_peer=200 * KIB, we_stop=1000, peer_stops=1500),
        Stream(opened_by_us=False, from_us=1 * MIB, from_peer=1 * MIB),
    ]
    results = session.with_go(plan, "client", "-window", str(256 * KIB), "-close-timeout", "300ms")
    _, ours, theirs = results[1]
    assert (ours["received"], ours["received_sha256"]) == (theirs["sent"], theirs["sent_sha256"])
    assert ours["ended"]
    assert_agreed(*results[2])


def test_a_reset_reaches_the_other_end_and_harms_no_other_stream(session: Session) -> None:
    plan = [
        Stream(opened_by_us=bool(n % 2), from_us=1 * MIB, from_peer=3 * MIB, reset_after=500_000 if n % 3 else -1)
        for n in range(30)
    ]
    for expected, ours, theirs in session.with_go(plan, "server").values():
        if expected.reset_after < 0:
            assert_agreed(expected, ours, theirs)
        else:
            assert (ours["reset_by_us"], theirs["reset"]) == (True, True)
