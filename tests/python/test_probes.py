"""When a server is probed, and what comes of it, in a made-up world."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import probes
from ech_workers.ech import EchStore
from ech_workers.probes import AGAIN, LOOK_AGAIN, OVERDUE, STOPS, ProbeCounts
from ech_workers.stalls import DEMOTED_FIRST
from ech_workers.timing import Timing
from harness.servers import PAIR, begin, roles, server

if TYPE_CHECKING:
    from pathlib import Path

    from ech_workers.supervisor import Supervisor
    from harness.world import World

STANDBY_INTERVAL = 100.0
SLICE = 30.0
ANNOUNCED = ("1", "connect", "half-close", "simple-open", "echo")
STOPPED = {"outcome": "stopped", "received": 12_000}


@pytest.fixture(autouse=True)
def shorter_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that less of the world's time has to pass, of which each moment is a turn of the loop."""
    monkeypatch.setattr(probes, "STANDBY_INTERVAL", STANDBY_INTERVAL)


def pass_time(world: World, seconds: float) -> None:
    """A little at a time: the world's limit is for one run of its loop."""
    whole, rest = divmod(seconds, SLICE)
    for piece in [SLICE] * int(whole) + [rest]:
        world.run(piece)


def announce(world: World) -> None:
    """Every server takes probes, and is reached by the first address of the plan."""
    world.answer = lambda plan: {"features": ANNOUNCED, "address": f"{plan.addresses[0]}:443"}


def probed(world: World) -> list[int]:
    """The servers that were probed, in order."""
    return [upstream for _, _, upstream in world.echoes]


def many(world: World, **changes: Any) -> Supervisor:
    """One server with a network of addresses."""
    announce(world)
    return begin(world, server("one", server_ips=("192.0.2.0/24",), **changes), uniform=random.Random(1).random)


def test_a_server_that_stands_by_is_probed_now_and_then_and_the_one_in_use_is_not(world: World) -> None:
    announce(world)
    supervisor = begin(world, *PAIR)
    pass_time(world, 0.9 * STANDBY_INTERVAL)
    assert world.echoes == []
    pass_time(world, 2.2 * STANDBY_INTERVAL)
    assert probed(world) == [1, 1, 1]
    assert all(session is not None for _, session, _ in world.echoes)
    one, two = supervisor.status().upstreams
    assert (one.probe, one.probes) == (None, ProbeCounts())
    assert two.probe is not None
    assert (two.probe.outcome, two.probe.passed_ms, two.probes.passed) == ("passed", 40.0, 3)
    assert two.probe.age < STANDBY_INTERVAL


@pytest.mark.parametrize("mode", ["yamux", "simple"])
def test_nothing_is_sent_to_a_server_that_does_not_announce_it(world: World, mode: Any) -> None:
    supervisor = begin(world, *(server(name, mode=mode, server_ips=("192.0.2.0/24",)) for name in ("one", "two")))
    pass_time(world, 3 * STANDBY_INTERVAL)
    assert world.echoes == []
    assert [upstream.can_be_probed for upstream in supervisor.status().upstreams] == [False, False]


def test_a_server_is_used_first_again_when_a_probe_has_got_through(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    announce(world)
    supervisor = begin(world, *PAIR, timing=Timing(probe_first=True))
    world.echo_outcome = lambda upstream: STOPPED if upstream == 0 else {"outcome": "passed", "ms": 40.0}
    pass_time(world, 20)
    # After the second one it is known, and nothing more is sent until its time is over.
    assert probed(world).count(0) == 2
    assert roles(supervisor) == ["demoted", "in use"]
    assert "connections to one stop after 12 KB" in caplog.text
    assert supervisor.status().upstreams[0].stops_after == 12_000
    pass_time(world, DEMOTED_FIRST)
    assert probed(world).count(0) == 3
    assert roles(supervisor) == ["demoted", "in use"]
    world.echo_outcome = lambda upstream: {"outcome": "passed", "ms": 40.0}
    pass_time(world, 2 * DEMOTED_FIRST - 60)
    assert roles(supervisor) == ["demoted", "in use"]
    pass_time(world, 120)
    assert probed(world).count(0) == 4
    assert roles(supervisor) == ["in use", "standby"]


def test_a_session_over_which_a_probe_stopped_is_replaced(world: World) -> None:
    announce(world)
    begin(world, *PAIR, timing=Timing(probe_first=True))
    world.echo_outcome = lambda upstream: STOPPED if upstream == 0 else {"outcome": "passed", "ms": 40.0}
    pass_time(world, 20)
    stopped = [session for _, session, upstream in world.echoes if upstream == 0]
    assert len(set(stopped)) == 2
    assert [verb[1] for verb in world.verbs if verb[0] == "retire"] == stopped
    assert list(world.upstreams.values()).count(0) == 3


def test_a_new_address_among_many_is_probed_once_and_its_score_outlives_the_process(
    world: World, tmp_path: Path
) -> None:
    announce(world)
    store = EchStore(tmp_path, clock=world.wall)
    begin(world, server("one", server_ips=("192.0.2.0/24",)), store=store)
    pass_time(world, 2 * STANDBY_INTERVAL)
    assert len(world.echoes) == 1
    used = world.dials[0][1].addresses[0]
    kept = EchStore(tmp_path, clock=world.wall).addresses("one.test:443 --server-ip")
    assert kept is not None
    assert (kept.addresses, kept.ms) == ((used,), (40.0,))


def test_an_address_by_which_connections_stop_is_left_for_the_next(world: World) -> None:
    supervisor = many(world)
    left: list[str] = []

    def outcome(upstream: int) -> dict[str, Any]:
        if len(left) == 2:
            return {"outcome": "passed", "ms": 40.0}
        left.append(world.dials[-1][1].addresses[0])
        return STOPPED

    world.echo_outcome = outcome
    pass_time(world, 60)
    assert len(set(left)) == 2
    assert world.dials[-1][1].addresses[0] not in left
    (status,) = supervisor.status().upstreams
    assert (status.probes.stopped, status.probes.passed) == (2, 1)


def test_after_many_that_stopped_there_are_pauses(world: World) -> None:
    many(world)
    # Each after another amount: nothing says that the server's connections stop always.
    amounts = iter(range(0, 1 << 30, 7000))
    world.echo_outcome = lambda upstream: {"outcome": "stopped", "received": next(amounts) % 60_000}
    pass_time(world, 300)
    assert STOPS <= len(world.echoes) <= STOPS + 3
    before = len(world.echoes)
    pass_time(world, 3600)
    assert len(world.echoes) - before <= 6


def test_a_session_with_streams_is_not_probed(world: World) -> None:
    announce(world)
    begin(world, *PAIR)
    pass_time(world, 1)
    (standby,) = [number for number in world.live if world.upstreams[number] == 1]
    world.open_streams[standby] = 1
    pass_time(world, 3 * STANDBY_INTERVAL)
    assert standby not in [session for _, session, _ in world.echoes]
    # Its successor is free.
    assert probed(world) == [1] * len(world.echoes)


def test_one_that_finds_a_stream_in_its_session_is_tried_again_soon_and_counts_for_nothing(world: World) -> None:
    supervisor = many(world)
    world.echo_outcome = lambda upstream: {"outcome": "busy"}
    pass_time(world, 2.5 * LOOK_AGAIN)
    assert len(world.echoes) == 3
    (status,) = supervisor.status().upstreams
    assert (status.probe, status.probes) == (None, ProbeCounts())
    world.echo_outcome = lambda upstream: {"outcome": "passed", "ms": 40.0}
    pass_time(world, 2 * LOOK_AGAIN)
    (status,) = supervisor.status().upstreams
    assert status.probes == ProbeCounts(passed=1)


def test_one_that_fails_is_tried_again_after_a_minute_and_one_without_an_outcome_later(world: World) -> None:
    many(world)
    world.echo_outcome = lambda upstream: {"outcome": "failed"}
    pass_time(world, 1.5 * AGAIN)
    assert len(world.echoes) == 2
    world.echo_outcome = lambda upstream: None
    pass_time(world, AGAIN)
    assert len(world.echoes) == 3
    pass_time(world, OVERDUE - AGAIN)
    assert len(world.echoes) == 3
    pass_time(world, AGAIN)
    assert len(world.echoes) == 4


def test_in_simple_mode_a_probe_has_a_connection_of_its_own(world: World) -> None:
    supervisor = many(world, mode="simple")
    world.echo_outcome = lambda upstream: {"outcome": "passed", "ms": 40.0, "address": "192.0.2.77:443"}
    pass_time(world, 10)
    assert [session for _, session, _ in world.echoes] == [None] * len(world.echoes)
    assert world.echoes
    (status,) = supervisor.status().upstreams
    assert status.probe is not None
    assert status.probe.address == "192.0.2.77:443"


def test_on_another_network_nothing_is_held_against_a_server(world: World) -> None:
    announce(world)
    supervisor = begin(world, *PAIR, timing=Timing(probe_first=True))
    world.echo_outcome = lambda upstream: STOPPED if upstream == 0 else {"outcome": "passed", "ms": 40.0}
    pass_time(world, 20)
    assert roles(supervisor) == ["demoted", "in use"]
    world.network_changes()
    pass_time(world, 30)
    assert roles(supervisor)[0] == "in use"
