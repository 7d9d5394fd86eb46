"""How far away servers are, from what was measured of their sessions and dials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ech_workers.distances import MEASURE_EVERY, Distances
from harness.native import stand_in
from harness.servers import begin, server

if TYPE_CHECKING:
    from harness.world import World


def session(number: int, upstream: int, path_ms: float | None, unanswered: float | None = None) -> Any:
    made = stand_in("SessionSnapshot")
    return made(session=number, upstream=upstream, path_ms=path_ms, rtt_ms=999.0, unanswered=unanswered)


def snapshot(sessions: list[Any], connect_ms: dict[int, float | None]) -> Any:
    made = stand_in("UpstreamSnapshot")
    upstreams = tuple(made(upstream=number, connect_ms=took) for number, took in connect_ms.items())
    return stand_in("Snapshot")(sessions=tuple(sessions), upstreams=upstreams)


def test_sessions_say_it_or_else_the_last_dial() -> None:
    distances = Distances()
    assert distances.of(0) is None
    sessions = [session(1, 0, 30.0), session(2, 0, 20.0), session(3, 1, None)]
    distances.look(snapshot(sessions, {0: 90.0, 1: 50.0, 2: 70.0, 3: None}))
    assert [distances.of(number) for number in range(5)] == [20.0, 50.0, 70.0, None, None]
    # In simple mode there are no sessions, and each dial measures.
    distances.look(snapshot([], {2: 10.0}))
    assert [distances.of(number) for number in range(3)] == [None, None, 10.0]


def test_servers_that_are_compared_are_measured_now_and_then() -> None:
    distances = Distances()
    sessions = [session(1, 0, 30.0), session(2, 1, 20.0), session(3, 2, 20.0), session(4, 1, 20.0, unanswered=0.1)]
    assert distances.due(sessions, set(), 0.0) == []
    assert distances.due(sessions, {0, 1}, 0.0) == [1, 2]
    assert distances.due(sessions, {0, 1}, MEASURE_EVERY - 0.1) == []
    assert distances.due(sessions, {0, 1}, MEASURE_EVERY) == [1, 2]


def test_new_connections_go_to_the_nearest_and_both_are_measured_before_they_go_elsewhere(world: World) -> None:
    begin(world, server("one"), server("two", priority=1), policy="fastest")
    world.path_ms = {0: 20.0, 1: 20.0}
    world.run(60)
    assert world.tiers == [[0], [1]]
    assert not [verb for verb in world.verbs if verb[0] == "probe"]
    world.path_ms[0] = 200.0
    world.run(8)
    # One measurement may have been bad luck: both are measured again, and the first one is as near as before.
    asked = len([verb for verb in world.verbs if verb[0] == "probe"])
    assert 6 <= asked <= 10
    world.path_ms[0] = 20.0
    world.run(20)
    assert world.tiers == [[0], [1]]
    assert len([verb for verb in world.verbs if verb[0] == "probe"]) - asked <= 2
    world.path_ms[0] = 200.0
    world.run(12)
    assert world.tiers == [[1], [0]]
