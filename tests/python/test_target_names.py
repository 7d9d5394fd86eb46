"""Names that direct connections want, asked of the resolvers by a supervisor in a made world."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING

import pytest

from harness.world import FakeResolver, NameWanted, World, made_world, start

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with made_world(monkeypatch) as made:
        yield made


def test_both_families_are_asked_for_and_the_least_time_holds(world: World) -> None:
    world.zone |= {("nas.test", "A"): ["60 192.0.2.7"], ("nas.test", "AAAA"): ["30 2001:db8::7"]}
    start(world)
    world.post(1.0, NameWanted(name="nas.test"))
    world.run(5)
    assert world.resolved_names == {"nas.test": (("2001:db8::7", "192.0.2.7"), 30.0)}


def test_one_family_is_enough_and_none_is_an_answer_too(world: World) -> None:
    world.zone |= {("four.test", "A"): ["60 192.0.2.7"], ("none.test", "TXT"): []}
    start(world)
    for name in ("four.test", "none.test", "missing.test"):
        world.post(1.0, NameWanted(name=name))
    world.run(5)
    assert world.resolved_names["four.test"] == (("192.0.2.7",), 60.0)
    for name in ("none.test", "missing.test"):
        found = world.resolved_names[name]
        assert found is not None
        assert found[0] == ()


def test_a_name_that_is_wanted_twice_is_asked_for_once_and_again_when_it_was_answered(world: World) -> None:
    world.zone |= {("nas.test", "A"): ["60 192.0.2.7"]}
    start(world)
    for moment in (1.0, 1.0, 10.0):
        world.post(moment, NameWanted(name="nas.test"))
    world.run(5)
    asked = sum(name == "nas.test" for one in world.resolvers.values() for _, name, _ in one.asked)
    assert len([verb for verb in world.verbs if verb == ("resolved", "nas.test")]) == 1
    world.run(10)
    assert len([verb for verb in world.verbs if verb == ("resolved", "nas.test")]) == 2
    assert sum(name == "nas.test" for one in world.resolvers.values() for _, name, _ in one.asked) > asked


def test_resolvers_that_fail_are_told_as_such(world: World) -> None:
    world.resolvers = {f"{name}.dns": FakeResolver(failure=("tcp", "tcp-refused")) for name in "abc"}
    start(world)
    world.post(1.0, NameWanted(name="nas.test"))
    world.run(30)
    assert world.resolved_names == {"nas.test": None}


def test_on_a_network_with_ipv6_alone_they_are_reached_through_its_translator(world: World) -> None:
    world.zone |= {("nas.test", "A"): ["60 192.0.2.7"], ("nas.test", "AAAA"): ["60 2001:db8::7"]}
    supervisor = start(world)
    supervisor._surroundings.translation.use(IPv6Network("64:ff9b::/96"))
    # A program may give an address, to which there is no route then; this machine's own stays as it is.
    for name in ("nas.test", "192.0.2.8", "127.0.0.1"):
        world.post(1.0, NameWanted(name=name))
    world.run(5)
    assert world.resolved_names == {
        "nas.test": (("2001:db8::7", "64:ff9b::c000:207"), 60.0),
        "192.0.2.8": (("64:ff9b::c000:208",), 0.0),
        "127.0.0.1": (("127.0.0.1",), 0.0),
    }
    # On the next network they may be reached in another way.
    world.network_changes()
    world.run(1)
    assert ("forget_names",) in world.verbs


def test_where_there_is_ipv4_an_address_stands_for_itself(world: World) -> None:
    start(world)
    world.post(1.0, NameWanted(name="192.0.2.8"))
    world.run(2)
    assert world.resolved_names == {"192.0.2.8": (("192.0.2.8",), 0.0)}
