"""How far away servers are, from what their sessions measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ech_workers.distances import MEASURE_EVERY, Distances
from harness.native import stand_in
from harness.servers import begin, server

if TYPE_CHECKING:
    from harness.world import World


def session(number: int, upstream: int, rtt_ms: float | None, unanswered: float | None = None) -> Any:
    return stand_in("SessionSnapshot")(session=number, upstream=upstream, rtt_ms=rtt_ms, unanswered=unanswered)


def test_the_best_of_its_sessions_says_it() -> None:
    distances = Distances()
    assert distances.of(0) is None
    distances.look([session(1, 0, 30.0), session(2, 0, 20.0), session(3, 1, None)])
    assert [distances.of(number) for number in range(3)] == [20.0, None, None]
    distances.look([session(1, 0, 30.0)])
    assert distances.of(0) == 30.0


def test_servers_that_are_compared_are_measured_now_and_then() -> None:
    distances = Distances()
    sessions = [session(1, 0, 30.0), session(2, 1, 20.0), session(3, 2, 20.0), session(4, 1, 20.0, unanswered=0.1)]
    assert distances.due(sessions, set(), 0.0) == []
    assert distances.due(sessions, {0, 1}, 0.0) == [1, 2]
    assert distances.due(sessions, {0, 1}, MEASURE_EVERY - 0.1) == []
    assert distances.due(sessions, {0, 1}, MEASURE_EVERY) == [1, 2]


def test_new_connections_go_to_the_nearest_and_both_are_measured_before_they_go_elsewhere(world: World) -> None:
    begin(world, server("one"), server("two", priority=1), policy="fastest")
    world.trips = {0: 20.0, 1: 20.0}
    world.run(60)
    assert world.tiers == [[0], [1]]
    assert not [verb for verb in world.verbs if verb[0] == "probe"]
    world.trips[0] = 200.0
    world.run(8)
    # One measurement may have been bad luck: both are measured again, and the first one is as near as before.
    asked = len([verb for verb in world.verbs if verb[0] == "probe"])
    assert 6 <= asked <= 10
    world.trips[0] = 20.0
    world.run(20)
    assert world.tiers == [[0], [1]]
    assert len([verb for verb in world.verbs if verb[0] == "probe"]) - asked <= 2
    world.trips[0] = 200.0
    world.run(12)
    assert world.tiers == [[1], [0]]
