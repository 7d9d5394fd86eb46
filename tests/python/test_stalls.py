"""A server whose connections stop after the same few kilobytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ech_workers.stalls import ALIKE, DEMOTED_FIRST, DEMOTED_LIMIT, PASSED, Stalls, amount
from harness.native import stand_in
from harness.servers import PAIR, begin, roles
from harness.world import World

if TYPE_CHECKING:
    import pytest

    from harness.world import World


def session(number: int, received: int) -> Any:
    return stand_in("SessionSnapshot")(session=number, upstream=0, bytes_down=received)


def stopped(stalls: Stalls, number: int, received: int, now: float) -> bool:
    """A session becomes silent and is given up."""
    assert not stalls.look([session(number, received)], {number}, now)
    return stalls.look([], (), now)


def test_two_sessions_that_stop_after_nearly_the_same_amount_demote_their_server() -> None:
    stalls = Stalls()
    assert not stopped(stalls, 1, 10_000, 0.0)
    assert not stalls.is_demoted(1.0)
    assert stopped(stalls, 2, 10_000 + ALIKE, 2.0)
    assert stalls.is_demoted(2.0)
    assert stalls.stops_after == 10_000 + ALIKE
    assert not stalls.is_demoted(2.0 + DEMOTED_FIRST)


def test_a_record_that_is_cut_in_the_middle_has_not_come() -> None:
    stalls = Stalls()
    assert not stopped(stalls, 1, 0, 0.0)
    assert stopped(stalls, 2, 0, 1.0)
    assert amount(stalls.stops_after or 0) == "the first few KB"


def test_sessions_that_become_silent_after_other_amounts_have_another_reason() -> None:
    stalls = Stalls()
    for number, received in enumerate((15_000, 30_000, 500, 15_000, PASSED, 5_000)):
        assert not stopped(stalls, number, received, float(number))
    assert stalls.stops_after is None


def test_one_that_answers_again_has_not_stopped() -> None:
    stalls = Stalls()
    assert not stopped(stalls, 1, 15_000, 0.0)
    stalls.look([session(2, 15_000)], {2}, 1.0)
    stalls.look([session(2, 15_000)], (), 2.0)
    assert not stalls.look([], (), 3.0)


def test_it_is_used_last_for_twice_as_long_each_time_and_forgiven_by_what_gets_through() -> None:
    stalls, now, lasted = Stalls(), 0.0, []
    stopped(stalls, 0, 15_000, now)
    for number in range(1, 6):
        assert stopped(stalls, number, 15_000, now)
        lasted.append(stalls.left(now))
        now += lasted[-1]
    assert lasted == [DEMOTED_FIRST, 2 * DEMOTED_FIRST, 4 * DEMOTED_FIRST, DEMOTED_LIMIT, DEMOTED_LIMIT]
    stopped(stalls, 9, 15_000, now)
    assert not stalls.look([session(10, PASSED)], (), now)
    assert not stalls.is_demoted(now)
    assert stalls.stops_after is None


def test_a_session_over_which_a_probe_stopped_counts_once() -> None:
    stalls = Stalls()
    stalls.look([session(1, 12_000)], {1}, 0.0)
    assert not stalls.stopped(12_000, 1.0, 1)
    assert stalls.is_suspect
    assert not stopped(stalls, 1, 12_000, 2.0)
    assert stalls.stopped(13_000, 3.0, None)
    assert stalls.is_demoted(3.0)
    assert "connections to one stop after 13 KB" in stalls.words("one", 3.0)


def test_a_server_that_can_be_probed_is_used_last_until_something_gets_through() -> None:
    stalls = Stalls()
    stalls.has_to_prove = True
    for _ in range(2):
        stalls.stopped(12_000, 0.0, None)
    assert stalls.is_demoted(DEMOTED_FIRST + 1)
    assert stalls.until == DEMOTED_FIRST
    stalls.passed()
    assert not stalls.is_demoted(1.0)
    assert not stalls.is_suspect


def test_new_connections_go_to_the_next_server_until_the_network_is_another(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = begin(world, *PAIR)
    world.run(2)
    for _ in range(2):
        (number,) = [number for number in world.live if world.upstreams[number] == 0]
        world.received[number] = 15_000
        world.mute.add(0)
        # Something is sent, and nothing comes back.
        world.streams[number] = 1
        world.run(4)
        assert roles(supervisor)[1] == "in use"
        world.lose_server(0)
        world.run(1)
        world.mute.discard(0)
        world.run(30)
    assert roles(supervisor) == ["demoted", "in use"]
    assert supervisor.status().upstreams[0].stops_after == 15_000
    assert "stop after 15 KB" in caplog.text
    world.network_changes()
    world.run(30)
    assert roles(supervisor) == ["in use", "standby"]
