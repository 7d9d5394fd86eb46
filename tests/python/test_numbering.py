"""The numbers of servers over reloads, and what becomes of those that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ech_workers.numbering import Numbering
from harness.servers import begin, roles, server
from harness.world import REFUSED, World, session_up

if TYPE_CHECKING:
    import pytest


def test_a_server_keeps_its_number_in_another_order_and_none_gets_that_of_another() -> None:
    numbering = Numbering()
    one, two, three = server("one"), server("two"), server("three")
    assert numbering.of([one, two]) == (0, 1)
    assert numbering.of([two, one]) == (1, 0)
    assert numbering.of([three, two]) == (2, 1)
    # Of the one that was away nothing is known any more.
    assert numbering.of([one, two, three]) == (3, 1, 2)
    assert Numbering.gone((2, 1), (3, 1, 2)) == ()
    assert Numbering.gone((0, 1), (1,)) == (0,)


def test_another_server_or_mode_by_the_same_name_is_another_server() -> None:
    numbering = Numbering()
    assert numbering.of([server("one")]) == (0,)
    assert numbering.of([server("one", mode="simple")]) == (1,)
    assert numbering.of([server("one", server=server("two").server)]) == (2,)


def test_servers_may_have_any_numbers(world: World) -> None:
    supervisor = begin(world, server("one"), server("two", priority=1), numbers=(7, 3))
    world.run(2)
    assert world.tiers == [[7], [3]]
    assert roles(supervisor) == ["in use", "standby"]
    assert {upstream.name: upstream.upstream for upstream in supervisor.status().upstreams} == {"one": 7, "two": 3}
    world.lose_server(7)
    world.answer = lambda plan: REFUSED if plan.upstream == 7 else "up"
    world.run(1)
    assert roles(supervisor) == ["down", "in use"]


def test_the_sessions_of_a_server_that_is_gone_are_used_last(world: World) -> None:
    begin(world, server("one"), server("two", priority=1), numbers=(2, 1), former=(0,))
    world.run(2)
    assert world.tiers == [[2], [1], [0]]


def test_what_is_still_told_of_a_server_that_is_gone_harms_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = begin(world, server("one"), numbers=(1,))
    world.live[99], world.upstreams[99] = world.now, 0
    for event in world.lose(99):
        world.post(1.0, event)
    # One of its dials was under way.
    world.post(1.0, session_up(98, 97, upstream=0))
    status = world.run(3)
    assert status.phase == "up"
    assert [session.upstream for session in supervisor.status().upstreams] == [1]
    assert [verb[1] for verb in world.verbs if verb[0] == "retire"] == [97]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_another_policy_counts_without_another_session(world: World) -> None:
    supervisor = begin(world, server("one"), server("two", priority=1), standby="cold")
    world.run(2)
    assert (world.tiers, len(world.dials)) == ([[0], [1]], 1)
    supervisor.select("spread", "cold")
    world.run(2)
    # Now the other one is needed too.
    assert (sorted(world.tiers[0]), len(world.dials), len(world.live)) == ([0, 1], 2, 2)
    supervisor.select("priority", "warm")
    world.run(2)
    assert (world.tiers, len(world.live)) == ([[0], [1]], 2)
