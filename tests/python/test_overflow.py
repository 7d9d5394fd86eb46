"""Sessions beyond the wanted ones: when one is dialled, and when it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from ech_workers.overflow import Overflow
from ech_workers.readiness import wait_ready
from ech_workers.timing import Timing
from harness.world import SessionsFull, World, refuse, start

if TYPE_CHECKING:
    from harness.world import World


@pytest.mark.parametrize(
    ("wanted", "most"),
    [(1, 3), (2, 4), (3, 4), (4, 4), (8, 8)],
)
def test_full_sessions_get_two_more_up_to_four_in_all(wanted: int, most: int) -> None:
    overflow = Overflow(Timing())
    for live in range(wanted, most):
        assert overflow.full(0.0, live=live, wanted=wanted) == "dial"
        assert overflow.full(0.0, live=live, wanted=wanted) == "dialling"
    assert overflow.full(0.0, live=most, wanted=wanted) == "wait"


def test_after_a_failure_the_next_one_is_not_dialled_at_once() -> None:
    overflow = Overflow(Timing(backoff_limit=30))
    assert overflow.full(0.0, live=1, wanted=1) == "dial"
    overflow.failed(1.0)
    assert overflow.full(2.0, live=1, wanted=1) == "wait"
    assert overflow.full(31.0, live=1, wanted=1) == "dial"


def test_a_session_that_is_ended_for_a_further_one_is_the_last() -> None:
    overflow = Overflow(Timing(retry_after_limit=3600))
    assert overflow.full(0.0, live=1, wanted=1) == "dial"
    overflow.up(1.0)
    overflow.lost(2.0)
    assert overflow.full(100.0, live=1, wanted=1) == "wait"
    assert overflow.full(3602.0, live=1, wanted=1) == "dial"
    overflow.up(3603.0)
    overflow.lost(3700.0)
    assert overflow.full(3701.0, live=1, wanted=1) == "dial"


def full(world: World) -> None:
    world.post(0.0, SessionsFull(upstream=0))


def test_a_full_server_is_dialled_again_and_the_sessions_end_when_they_are_idle(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start(world)
    world.run(10)
    (first,) = world.live
    for expected in (2, 3, 3, 3):
        full(world)
        assert len(world.run(5).sessions) == expected
    assert [line.message for line in caplog.records if "no more connections" in line.message] == [
        "secret.test:443 allows no more connections in a session: another session is dialled",
        "secret.test:443 allows no more connections in a session: another session is dialled",
        "secret.test:443 allows no more connections in 3 sessions: new ones wait until others end",
    ]
    # Two of them still carry streams.
    others = [session for session in world.live if session != first]
    world.open_streams = {first: 3, others[0]: 1}
    assert [session.session for session in world.run(80).sessions] == [first, others[0]]
    world.open_streams = {first: 3}
    assert [session.session for session in world.run(30).sessions] == [first]
    assert len(world.dials) == 3


def test_a_further_session_that_cannot_be_had_alarms_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = start(world)
    world.run(10)
    world.answer = lambda plan: refuse("http", "server-busy")
    full(world)
    status = world.run(5)
    assert (status.phase, status.cause, status.breaker, len(world.dials)) == ("up", None, "closed", 2)
    full(world)
    assert len(world.run(5).sessions) == 1
    assert len(world.dials) == 2
    wait_ready(supervisor, 1)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "secret.test:443 allows no more connections in 1 sessions: new ones wait until others end"
    ]


def test_lost_sessions_are_not_all_dialled_again(world: World) -> None:
    start(world)
    world.run(10)
    full(world)
    assert len(world.run(5).sessions) == 2
    world.lose_all()
    assert len(world.run(10).sessions) == 1
