"""Several servers: which one new connections go to when one is lost, is silent, or comes back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ech_workers.readiness import wait_ready
from ech_workers.selection import ASKED_FOR
from harness.native import stand_in
from harness.servers import PAIR, begin, roles, server
from harness.world import REFUSED, World

if TYPE_CHECKING:
    import pytest


def test_each_server_is_dialled_by_its_own_options(world: World) -> None:
    supervisor = begin(world, server("one", mode="simple"), server("two", ech=False, priority=1, profile="firefox-153"))
    world.run(2)
    plans = {plan.upstream: plan for _, plan in world.dials}
    assert [(plans[n].server_name, plans[n].token, plans[n].mode) for n in (0, 1)] == [
        ("one.test", "one", "simple"),
        ("two.test", "two", "yamux"),
    ]
    assert plans[0].ech is not None
    assert (plans[1].ech, plans[1].profile) == (None, "firefox-153")
    assert [upstream.phase for upstream in supervisor.status().upstreams] == ["up", "up"]


def test_new_connections_go_to_the_preferred_server_and_the_other_is_kept_warm(world: World) -> None:
    supervisor = begin(world, *PAIR)
    world.run(2)
    assert world.tiers == [[0], [1]]
    assert roles(supervisor) == ["in use", "standby"]
    assert len(world.live) == 2


def test_they_leave_a_lost_server_at_once_and_return_after_a_probation(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ech_workers")
    supervisor = begin(world, *PAIR)
    world.run(60)
    world.answer = lambda plan: REFUSED if plan.upstream == 0 else "up"
    world.lose_server(0)
    status = world.run(0.5)
    assert world.used == 1
    assert roles(supervisor) == ["down", "in use"]
    assert (status.phase, world.reason) == ("up", None)
    world.answer = lambda plan: "up"
    while roles(supervisor)[0] == "down":
        world.run(1)
    assert roles(supervisor)[0] == "probation"
    assert world.tiers == [[1], [0]]
    world.run(6)
    assert world.tiers == [[0], [1]]
    told = [message for message in caplog.messages if message.startswith("new connections")]
    assert told == [f"new connections go to {name}" for name in ("two", "one")]


def test_a_server_that_comes_and_goes_does_not_take_the_connections_with_it(world: World) -> None:
    begin(world, *PAIR)
    world.run(60)
    before = len([verb for verb in world.verbs if verb[0] == "route"])
    for _ in range(30):
        world.lose_server(0)
        world.run(4)
    changes = len([verb for verb in world.verbs if verb[0] == "route"]) - before
    assert changes <= 12
    assert world.used == 1


def test_they_leave_a_server_that_stops_answering_within_three_seconds(world: World) -> None:
    supervisor = begin(world, *PAIR)
    world.run(60)
    world.mute = {0}
    for session, upstream in world.upstreams.items():
        if upstream == 0:
            world.streams[session] = 1
    world.run(3)
    assert world.tiers == [[1], [0]]
    assert roles(supervisor) == ["silent", "in use"]
    world.mute = set()
    world.run(1)
    assert roles(supervisor) == ["probation", "in use"]
    world.run(10)
    assert roles(supervisor) == ["in use", "standby"]


def test_an_idle_server_is_not_asked_whether_it_is_alive(world: World) -> None:
    begin(world, *PAIR)
    world.run(120)
    assert not [verb for verb in world.verbs if verb[0] == "probe"]


def test_only_when_no_server_can_be_reached_programs_are_told_why(world: World) -> None:
    supervisor = begin(world, *PAIR)
    world.answer = lambda plan: REFUSED if plan.upstream == 0 else "up"
    world.run(5)
    wait_ready(supervisor, 1)
    assert world.reason is None
    world.answer = lambda plan: REFUSED
    world.lose_server(1)
    world.run(30)
    assert world.reason is not None
    world.answer = lambda plan: "up" if plan.upstream == 1 else REFUSED
    world.run(60)
    assert world.reason is None


def test_keys_that_one_server_hands_over_are_its_own(world: World) -> None:
    from harness.world import EchLearned, ech_list

    begin(world, *PAIR)
    world.run(2)
    world.post(0.0, EchLearned(upstream=1, server_name="two.test", configs=ech_list("new")))
    world.run(1)
    world.lose_server(0)
    world.lose_server(1)
    world.run(5)
    last = {plan.upstream: plan.ech for _, plan in world.dials}
    assert last == {0: ech_list("one"), 1: ech_list("new")}


def test_spread_uses_all_that_work(world: World) -> None:
    supervisor = begin(world, server("one", weight=3), server("two"), server("three", priority=9), policy="spread")
    world.run(2)
    assert world.tiers == [[0, 1, 2]]
    assert set(roles(supervisor)) == {"in use"}
    world.answer = lambda plan: REFUSED if plan.upstream == 1 else "up"
    world.lose_server(1)
    world.run(1)
    assert world.tiers == [[0, 2], [1]]


def test_a_cold_standby_is_dialled_when_the_preferred_server_is_lost_and_given_up_when_it_is_back(world: World) -> None:
    supervisor = begin(world, *PAIR, standby="cold")
    world.run(60)
    assert {plan.upstream for _, plan in world.dials} == {0}
    world.answer = lambda plan: REFUSED if plan.upstream == 0 else "up"
    world.lose_server(0)
    world.run(1)
    assert world.used == 1
    world.answer = lambda plan: "up"
    world.run(60)
    assert world.used == 0
    assert roles(supervisor) == ["in use", "down"]
    assert {world.upstreams[session] for session in world.live} == {0}


def test_a_cold_standby_about_which_everything_is_known_is_not_dialled_at_the_start(world: World) -> None:
    known = {"server_ips": ("192.0.2.7",), "ech": False}
    begin(world, server("one", **known), server("two", priority=1, **known), standby="cold")
    world.run(60)
    assert {plan.upstream for _, plan in world.dials} == {0}


def test_a_cold_standby_is_there_for_a_minute_when_the_preferred_server_cannot_reach_a_target(world: World) -> None:
    begin(world, *PAIR, standby="cold")
    world.run(60)
    world.post(0.0, stand_in("Unreached")(upstream=0, kind="not-allowed", reason="no", tried=[0]))
    world.run(1)
    assert {world.upstreams[session] for session in world.live} == {0, 1}
    assert world.used == 0
    world.run(ASKED_FOR - 2)
    assert {world.upstreams[session] for session in world.live} == {0, 1}
    world.run(10)
    assert {world.upstreams[session] for session in world.live} == {0}


def test_a_cold_standby_is_dialled_when_the_preferred_server_was_never_there(world: World) -> None:
    begin(world, *PAIR, standby="cold")
    world.answer = lambda plan: REFUSED if plan.upstream == 0 else "up"
    world.run(5)
    assert world.used == 1
