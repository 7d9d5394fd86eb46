"""rust/yamux and hashicorp/yamux follow the same random plan at the two ends of one TCP connection, and must agree on what happened.

Streams are opened by either end, carry random amounts in both directions, are half-closed by each end when it has sent all, stall
because a reader takes nothing for a while, or are reset in the middle.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from harness.cargo import example
from harness.processes import Processes, run
from harness.yamux_plan import KIB, MIB, Stream, assert_agreed, by_id, random_plan


@pytest.fixture(scope="session")
def plan_peer() -> Path:
    return example("ech-workers-yamux", "plan_peer")


class Session:
    """Runs both ends and compares what they say."""

    def __init__(self, processes: Processes, go: Path, rust: Path, folder: Path) -> None:
        self.processes = processes
        self.go = go
        self.rust = rust
        self.folder = folder

    def run(self, plan: list[Stream], side: str, *go_flags: str) -> dict[int, tuple[Stream, Any, Any]]:
        """Stream id to its plan, what Rust reports and what Go reports."""
        rust_plan, go_plan = self.folder / "rust.plan", self.folder / "go.plan"
        rust_plan.write_text(
            "".join(f"{'ours' if s.opened_by_us else 'theirs'} {s.from_us} {s.we_stop} {s.reset_after}\n" for s in plan)
        )
        go_plan.write_text(
            "".join(
                f"{'theirs' if s.opened_by_us else 'ours'} {s.from_peer} {s.peer_stops} {s.peer_delays}\n" for s in plan
            )
        )
        flags = ["-client"] if side == "server" else []
        go = self.processes.start(self.go, "-plan", go_plan, *flags, *go_flags)
        address = go.wait_event("listening")["address"]
        done = run(self.rust, address, side, rust_plan, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr + go.output
        assert go.wait(30) == 0, go.output
        assert go.events("session") == [{"event": "session", "streams": 0}], "Go has streams left"
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines[-1]["streams"] == 0, "Rust has streams left"
        rust = {line["id"]: line for line in lines[:-1]}
        reported = {line["id"]: line for line in go.events("stream")}
        assert rust.keys() == reported.keys()

        return {stream: (s, rust[stream], reported[stream]) for stream, s in by_id(plan, side).items()}


@pytest.fixture
def session(processes: Processes, go_peers: dict[str, Path], plan_peer: Path, tmp_path: Path) -> Session:
    return Session(processes, go_peers["yamux_plan"], plan_peer, tmp_path)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("seed", range(6))
def test_both_ends_agree_on_a_random_plan(session: Session, side: str, seed: int) -> None:
    window = random.Random(seed).choice([256 * KIB, 1 * MIB, 4 * MIB])
    for plan, rust, go in session.run(random_plan(seed), side, "-window", str(window)).values():
        if rust["reset_by_us"]:
            assert 0 <= plan.reset_after <= rust["received"]
        else:
            assert_agreed(plan, rust, go)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_stopped_reader_at_either_end_holds_up_nobody_else(session: Session, side: str) -> None:
    plan = [
        Stream(opened_by_us=True, from_us=6 * MIB, from_peer=0, peer_stops=1500),
        Stream(opened_by_us=True, from_us=0, from_peer=6 * MIB, we_stop=1500),
        *(Stream(opened_by_us=bool(n % 2), from_us=2 * MIB, from_peer=2 * MIB) for n in range(10)),
    ]
    for expected, rust, go in session.run(plan, side, "-window", str(1 * MIB)).values():
        assert_agreed(expected, rust, go)


def test_a_half_closed_stream_carries_the_late_answer(session: Session) -> None:
    plan = [Stream(opened_by_us=True, from_us=10, from_peer=3 * MIB, peer_delays=700) for _ in range(20)]
    for expected, rust, go in session.run(plan, "client").values():
        assert_agreed(expected, rust, go)


def test_the_reset_of_a_peer_that_closed_and_waited_takes_nothing_back(session: Session) -> None:
    """hashicorp resets a stream that it closed when the other direction is not closed within StreamCloseTimeout."""
    plan = [
        Stream(opened_by_us=True, from_us=6 * MIB, from_peer=200 * KIB, we_stop=1000, peer_stops=1500),
        Stream(opened_by_us=False, from_us=1 * MIB, from_peer=1 * MIB),
    ]
    results = session.run(plan, "client", "-window", str(256 * KIB), "-close-timeout", "300ms")
    _, rust, go = results[1]
    assert (rust["reset_by_peer"], rust["ended"], rust["over"]) == (True, True, True)
    assert (rust["received"], rust["received_sha256"]) == (go["sent"], go["sent_sha256"])
    assert_agreed(*results[2])


def test_a_reset_reaches_the_other_end_and_harms_no_other_stream(session: Session) -> None:
    plan = [
        Stream(opened_by_us=bool(n % 2), from_us=1 * MIB, from_peer=3 * MIB, reset_after=500_000 if n % 3 else -1)
        for n in range(30)
    ]
    for expected, rust, go in session.run(plan, "server").values():
        if expected.reset_after < 0:
            assert_agreed(expected, rust, go)
        else:
            assert (rust["reset_by_us"], rust["over"], go["reset"]) == (True, True, True)


def test_more_streams_than_the_backlog_are_all_accepted(session: Session) -> None:
    plan = [Stream(opened_by_us=True, from_us=100, from_peer=100) for _ in range(1500)]
    for expected, rust, go in session.run(plan, "client").values():
        assert_agreed(expected, rust, go)
