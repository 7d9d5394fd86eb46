"""The translator of a network that has IPv6 alone."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ech_workers import nat64
from ech_workers.ech import Addresses, EchStore
from ech_workers.nat64 import Nat64, Translation, embed, prefixes_of
from harness.waiting import wait_until
from harness.world import start

if TYPE_CHECKING:
    from harness.world import World

# RFC 6052 section 2.4.
TABLE = {
    "2001:db8::/32": "2001:db8:c000:221::",
    "2001:db8:100::/40": "2001:db8:1c0:2:21::",
    "2001:db8:122::/48": "2001:db8:122:c000:2:2100::",
    "2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
    "2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::",
    "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
    "64:ff9b::/96": "64:ff9b::192.0.2.33",
}


@pytest.mark.parametrize("prefix", TABLE)
def test_an_address_is_embedded_as_the_standard_has_it(prefix: str) -> None:
    assert IPv6Address(embed(IPv6Network(prefix), "192.0.2.33")) == IPv6Address(TABLE[prefix])


@pytest.mark.parametrize("prefix", TABLE)
def test_the_prefix_is_found_in_the_answer(prefix: str) -> None:
    network = IPv6Network(prefix)
    assert prefixes_of([embed(network, "192.0.0.170"), embed(network, "192.0.0.171")]) == (network,)


def test_an_answer_without_the_known_addresses_has_no_prefix() -> None:
    assert prefixes_of(["2001:db8::1", "::"]) == ()


@given(st.sampled_from(sorted(TABLE)), st.ip_addresses(v=4))
def test_what_is_translated_can_be_told_back(prefix: str, address: object) -> None:
    translation = Translation()
    translation.use(IPv6Network(prefix))
    (reached,) = translation.reach((str(address),))
    assert translation.original(reached) == str(address)


def test_without_a_translator_and_for_ipv6_nothing_changes() -> None:
    translation = Translation()
    assert translation.reach(("192.0.2.1", "2001:db8::1")) == ("192.0.2.1", "2001:db8::1")
    translation.use(IPv6Network("64:ff9b::/96"))
    assert translation.reach(("192.0.2.1", "2001:db8::1")) == ("64:ff9b::c000:201", "2001:db8::1")
    assert translation.original("2001:db8::1") == "2001:db8::1"


def test_only_a_network_without_ipv4_is_asked_for_its_translator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    routes = {AF_INET: True, AF_INET6: True}

    def ask() -> IPv6Network:
        asked.append(None)
        return IPv6Network("64:ff9b::/96")

    monkeypatch.setattr(nat64, "_has_route", lambda family, address: routes[family])
    monkeypatch.setattr(nat64, "_ask", ask)
    changes: list[None] = []
    translation = Translation()
    search = Nat64(translation, lambda: changes.append(None))
    search.look()
    search.close()
    assert not asked
    routes[AF_INET] = False
    search.look()
    wait_until(lambda: translation.prefix is not None, "the prefix is found", 20)
    search.close()
    assert (len(asked), len(changes)) == (1, 1)
    # Another network, which has IPv4.
    routes[AF_INET] = True
    search.look()
    assert translation.prefix is None
    search.close()


def test_servers_and_resolvers_are_reached_through_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, ...]] = []
    fetch = world.fetch

    def note(plan: Any) -> int:
        fetched.append(plan.addresses)
        return fetch(plan)

    monkeypatch.setattr(world, "fetch", note)
    store = EchStore(None)
    supervisor = start(world, store=store)
    supervisor._surroundings.translation.use(IPv6Network("64:ff9b::/96"))
    world.zone["secret.test", "AAAA"] = []
    world.answer = lambda plan: {"address": f"[{plan.addresses[0]}]:443"}
    world.run(5)
    assert set(fetched) == {("64:ff9b::c000:235",)}
    assert [plan.addresses for _, plan in world.dials] == [("64:ff9b::c000:201",)]
    # What is kept is the name's own address.
    kept = store.addresses("secret.test")
    assert isinstance(kept, Addresses)
    assert kept.addresses == ("192.0.2.1",)
