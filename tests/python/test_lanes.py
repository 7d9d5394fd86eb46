"""How many sessions there are when their number is not fixed: more beside bulk transfers, fewer when it is quiet again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers.lanes import DISPLACED_FOR, MOST, QUIET, Lanes
from harness.native import stand_in
from harness.world import refuse, start

if TYPE_CHECKING:
    from harness.world import World


def test_one_more_than_there_are_sessions_with_bulk_transfers_and_never_more_than_four() -> None:
    lanes, seen = Lanes(), []
    for session in range(6):
        lanes.bulk(session, 1, 0.0)
        seen.append(lanes.wanted)
    assert seen == [2, 3, 4, 4, 4, 4]
    assert MOST == 4


def test_a_session_that_is_not_needed_is_closed_when_it_is_idle_and_it_has_been_quiet() -> None:
    lanes = Lanes()
    lanes.bulk(1, 2, 0.0)
    lanes.bulk(1, 0, 5.0)
    assert lanes.look_at == 5.0 + QUIET
    # It came and went again: that is another quiet time.
    lanes.bulk(1, 1, 10.0)
    assert lanes.look_at == math.inf
    lanes.bulk(1, 0, 20.0)
    assert lanes.look_at == 20.0 + QUIET
    # Both have a stream: nothing is closed, and it is looked at again.
    assert lanes.shrink({1: 1, 2: 3}, 50.0) == []
    assert (lanes.wanted, lanes.look_at) == (2, 50.0 + QUIET)
    assert lanes.shrink({1: 0, 2: 0}, 80.0) == [2]
    assert (lanes.wanted, lanes.look_at) == (1, math.inf)


def test_sessions_that_are_kept_for_another_reason_are_not_closed() -> None:
    lanes = Lanes()
    lanes.bulk(1, 1, 0.0)
    lanes.bulk(1, 0, 0.0)
    assert lanes.shrink({1: 0, 2: 0, 3: 0}, QUIET, extra=1) == [3]
    assert lanes.wanted == 1


def test_a_stream_that_grows_gets_one_session_beside_it_and_not_more() -> None:
    lanes = Lanes()
    for session in (1, 2, 3):
        lanes.bulk(session, 0, 0.0, growing=True)
        assert lanes.wanted == 2
    lanes.bulk(1, 1, 1.0, growing=True)
    assert lanes.wanted == 2
    lanes.bulk(2, 1, 1.0, growing=True)
    assert lanes.wanted == 3
    for session in (1, 2, 3):
        lanes.bulk(session, 0, 2.0)
    assert lanes.look_at == 2.0 + QUIET


def test_what_is_gone_does_not_count() -> None:
    lanes = Lanes()
    lanes.bulk(1, 1, 0.0)
    lanes.bulk(2, 1, 0.0)
    lanes.keep({2, 3}, 1.0)
    assert lanes.look_at == 1.0 + QUIET
    assert lanes.shrink({2: 1, 3: 0, 4: 0}, 31.0) == [4]
    assert lanes.wanted == 2


def bulk(world: World, session: int, streams: int, *, growing: bool = False) -> None:
    world.post(0.0, stand_in("BulkChanged")(session=session, upstream=0, streams=streams, growing=growing))


def test_a_bulk_transfer_gets_a_second_session_beside_it_which_ends_when_it_is_quiet(world: World) -> None:
    start(world)
    world.run(5)
    (first,) = world.live
    bulk(world, first, 1)
    world.run(1)
    assert len(world.live) == 2
    (second,) = set(world.live) - {first}
    bulk(world, first, 0)
    world.run(QUIET - 2)
    assert len(world.live) == 2
    status = world.run(5)
    assert list(world.live) == [first]
    assert [verb[1] for verb in world.verbs if verb[0] == "retire"] == [second]
    assert status.phase == "up"


def test_there_are_four_connections_at_most_and_those_that_end_with_their_last_stream_count(world: World) -> None:
    world.retired_end = None
    start(world)
    world.run(5)
    for _ in range(6):
        for session in list(world.live):
            bulk(world, session, 1)
        world.run(2)
        assert len(world.live) <= MOST
    assert len(world.live) == MOST
    # Their age: successors would be more than there may be.
    world.run(4000)
    assert len(world.live) <= MOST


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_number_that_was_given_is_kept(world: World, sessions: int) -> None:
    start(world, sessions=sessions)
    world.run(5)
    for session in list(world.live):
        bulk(world, session, 3)
    world.run(100)
    assert len(world.live) == sessions


def test_simple_mode_has_no_lanes(world: World) -> None:
    start(world, mode="simple")
    world.run(5)
    dials: list[Any] = list(world.dials)
    for session in list(world.live):
        bulk(world, session, 1)
    world.run(10)
    assert len(world.dials) == len(dials)


def test_a_server_that_ends_a_session_for_the_next_one_keeps_its_only_one() -> None:
    lanes = Lanes()
    lanes.bulk(1, 1, 0.0)
    lanes.up(1.0)
    lanes.lost(2.0)
    assert lanes.wanted == 1
    lanes.keep({2}, 3.0)
    lanes.bulk(2, 1, 3.0)
    assert lanes.wanted == 1
    lanes.bulk(2, 1, 2.0 + DISPLACED_FOR)
    assert lanes.wanted == 2


def test_a_further_session_that_cannot_be_had_alarms_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world)
    world.run(5)
    world.answer = lambda plan: refuse("websocket", "websocket-busy")
    bulk(world, next(iter(world.live)), 1)
    status = world.run(10)
    assert (status.phase, status.cause, len(world.dials)) == ("up", None, 2)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
