"""The way up: look-ups, endpoints, addresses, sessions."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers.config import ServerAddress
from ech_workers.ech import EchStore
from ech_workers.errors import ConnectError, ResolverError
from ech_workers.readiness import wait_ready
from harness.world import REFUSED, EchLearned, World, ech_list, https, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.world import World

# ---------------------------------------------------------------- the way up


def test_a_cold_start_looks_up_dials_and_is_up(world: World) -> None:
    supervisor = start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert status.cause is None
    ((at, plan),) = world.dials
    assert at - 1000.0 < 0.1
    assert plan.fields == {
        "server_name": "secret.test",
        "port": 443,
        "authority_port": 443,
        "path": "/ws",
        "token": "t",
        "addresses": plan.addresses,
        "ech": ech_list("one"),
        "profile": "firefox",
        "alpn": "auto",
        "h2_known": False,
        "mode": "yamux",
        "tcp_timeout": 5.0,
        "handshake_timeout": 10.0,
        "upstream": 0,
    }
    assert set(plan.addresses) == {"2001:db8::1", "192.0.2.1"}
    wait_ready(supervisor, 1)
    assert status.ech is not None
    assert (status.ech.source, status.ech.origin, status.ech.public_name) == ("dns", "secret.test", "public.test")
    (session,) = status.sessions
    assert (session.ech, session.tls_ms) == ("accepted", 2.0)
    assert world.reason is None


def test_hints_are_used_before_the_addresses_are_known(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("one", rest="ipv4hint=192.0.2.7 ipv6hint=2001:db8::7 port=8443")]
    world.resolvers["a.dns"].delay = 0.01

    def slow_addresses(wire: bytes) -> bytes:
        world.resolvers["a.dns"].delay = 0.15
        return wire

    for resolver in world.resolvers.values():
        resolver.garble = slow_addresses
    world.zone = {("secret.test", "HTTPS"): world.zone["secret.test", "HTTPS"], ("secret.test", "TXT"): ["1 x"]}
    start(world)
    world.run(1)
    plan = world.dials[0][1]
    assert plan.addresses == ("2001:db8::7", "192.0.2.7")
    assert plan.port == 8443


def test_the_addresses_of_the_records_target_are_used(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("one", target="pool.test.")]
    world.zone["pool.test", "A"] = ["60 198.51.100.1"]
    start(world)
    assert world.run(2).phase == "up"
    assert world.dials[-1][1].addresses == ("198.51.100.1",)


def test_an_alias_is_followed_over_several_questions_up_to_a_limit(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = ["300 0 one.test."]
    world.zone["one.test", "HTTPS"] = ["300 0 two.test."]
    world.zone["two.test", "HTTPS"] = [https("aliased")]
    world.zone["two.test", "A"] = ["60 198.51.100.2"]
    start(world)
    assert world.run(2).phase == "up"
    assert world.dials[-1][1].ech == ech_list("aliased")
    assert world.dials[-1][1].addresses == ("198.51.100.2",)


def test_an_alias_loop_is_an_error_and_not_a_loop(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = ["300 0 one.test."]
    world.zone["one.test", "HTTPS"] = ["300 0 secret.test."]
    supervisor = start(world)
    status = world.run(3)
    assert status.cause is not None
    assert issubclass(status.cause.kind, ResolverError)
    assert "aliases" in status.cause.message
    assert all(resolver.failures == 0 for resolver in status.resolvers)
    with pytest.raises(ResolverError):
        wait_ready(supervisor, 1)
    assert sum(len(resolver.asked) for resolver in world.resolvers.values()) < 150


def test_another_port_than_443_asks_for_its_own_name(world: World) -> None:
    world.zone["_8450._https.secret.test", "HTTPS"] = [https("port", target="secret.test.")]
    start(world, server=ServerAddress("secret.test", 8450, "/"))
    assert world.run(1).phase == "up"
    assert (world.dials[0][1].port, world.dials[0][1].ech) == (8450, ech_list("port"))


TWO_ENDPOINTS = [https("one", rest="port=8443", target="a.test."), https("two", target="b.test.", priority=2)]


def publish_two(world: World) -> None:
    world.zone[("secret.test", "HTTPS")] = TWO_ENDPOINTS
    world.zone[("a.test", "A")] = ["60 192.0.2.1"]
    world.zone[("b.test", "A")] = ["60 192.0.2.2"]


def only(address: str) -> Callable[[Any], Any]:
    return lambda plan: {"address": f"{address}:{plan.port}"} if address in plan.addresses else REFUSED


def test_a_records_port_changes_where_to_connect_to_and_not_the_authority(world: World) -> None:
    publish_two(world)
    start(world)
    assert world.run(1).phase == "up"
    plan = world.dials[-1][1]
    assert (plan.port, plan.authority_port, plan.server_name) == (8443, 443, "secret.test")


def test_an_endpoint_that_fails_leads_to_the_next_at_once(world: World) -> None:
    publish_two(world)
    world.answer = only("192.0.2.2")
    start(world)
    status = world.run(2)
    assert status.phase == "up"
    assert [(plan.port, plan.addresses, plan.ech) for _, plan in world.dials] == [
        (8443, ("192.0.2.1",), ech_list("one")),
        (443, ("192.0.2.2",), ech_list("two")),
    ]
    assert status.breaker == "closed"
    assert world.reason is None
    # A lost session is dialed where the last one was.
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].addresses == ("192.0.2.2",)
    assert len(world.dials) == 3


def test_when_every_endpoint_fails_all_are_tried_again_after_a_pause(world: World) -> None:
    publish_two(world)
    world.answer = lambda plan: REFUSED
    start(world)
    status = world.run(120)
    assert status.cause is not None
    assert status.cause.code == "tcp-refused"
    assert len(world.dials) < 30
    tried = [plan.addresses for _, plan in world.dials]
    assert tried.count(("192.0.2.1",)) > 3
    assert tried.count(("192.0.2.2",)) > 3
    world.answer = only("192.0.2.1")
    assert world.run(120).phase == "up"


def test_an_endpoint_without_addresses_leads_to_the_next(world: World) -> None:
    publish_two(world)
    del world.zone[("a.test", "A")]
    start(world)
    assert world.run(2).phase == "up"
    assert world.dials[-1][1].addresses == ("192.0.2.2",)


def test_the_last_endpoint_decides_though_an_answer_about_it_came_after_its_failure(world: World) -> None:
    publish_two(world)
    del world.zone[("a.test", "A")]
    for resolver in world.resolvers.values():
        resolver.lag["AAAA"] = 0.1
    world.answer = lambda plan: REFUSED
    supervisor = start(world)
    world.run(1)
    with pytest.raises(ConnectError) as raised:
        wait_ready(supervisor, 1)
    assert raised.value.code == "tcp-refused"
    assert {plan.addresses for _, plan in world.dials} == {("192.0.2.2",)}


def test_endpoints_without_addresses_are_not_a_flood_of_questions(world: World) -> None:
    publish_two(world)
    del world.zone[("a.test", "A")], world.zone[("b.test", "A")]
    start(world)
    status = world.run(120)
    assert status.cause is not None
    assert status.cause.code == "resolver-no-name"
    assert sum(len(resolver.asked) for resolver in world.resolvers.values()) < 150
    world.zone[("b.test", "A")] = ["60 192.0.2.2"]
    assert world.run(120).phase == "up"


def test_a_new_look_at_the_record_begins_with_the_first_endpoint_again(world: World) -> None:
    publish_two(world)
    world.answer = only("192.0.2.2")
    start(world)
    world.run(2)
    world.answer = lambda plan: "up"
    world.run(300)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].addresses == ("192.0.2.1",)


def test_retry_configurations_of_a_further_endpoint_stay_with_it(world: World, tmp_path: Path) -> None:
    publish_two(world)

    def answer(plan: Any) -> Any:
        if "192.0.2.1" in plan.addresses:
            return REFUSED
        if plan.ech == ech_list("two"):
            return (EchLearned(server_name="secret.test", configs=ech_list("new")), {"retried": True})
        return "up"

    world.answer = answer
    store = EchStore(tmp_path, clock=world.wall)
    start(world, store=store)
    assert world.run(2).phase == "up"
    world.lose_all()
    world.run(1)
    plan = world.dials[-1][1]
    assert (plan.ech, plan.addresses) == (ech_list("new"), ("192.0.2.2",))
    kept = EchStore(tmp_path, clock=world.wall).configuration("secret.test:443")
    assert kept is not None
    assert (kept.configs, kept.target) == (ech_list("new"), "b.test")
    assert [other.target for other in kept.others] == ["a.test"]


def test_of_another_names_record_only_the_configuration_is_used(world: World) -> None:
    del world.zone["secret.test", "HTTPS"]
    world.zone["cdn.test", "HTTPS"] = [https("cdn", target="edge.test.", rest="port=99 ipv4hint=203.0.113.1")]
    start(world, ech_domain="cdn.test")
    status = world.run(1)
    plan = world.dials[0][1]
    assert (plan.ech, plan.port) == (ech_list("cdn"), 443)
    assert "203.0.113.1" not in plan.addresses
    assert status.ech is not None
    assert status.ech.origin == "cdn.test"


def test_given_configuration_and_addresses_need_no_resolver(world: World) -> None:
    start(world, ech_config=ech_list("mine"), server_ips=("192.0.2.99",))
    status = world.run(1)
    assert status.phase == "up"
    assert world.dials[0][1].addresses == ("192.0.2.99",)
    assert status.ech is not None
    assert (status.ech.source, status.ech.age) == ("option", None)
    assert not any(resolver.asked for resolver in world.resolvers.values())


def test_without_ech_no_record_is_asked_for_and_none_is_used(world: World) -> None:
    start(world, ech=False)
    status = world.run(1)
    assert world.dials[0][1].ech is None
    assert status.ech is None
    assert not any(kind == "HTTPS" for resolver in world.resolvers.values() for _, _, kind in resolver.asked)


def test_an_address_as_server_is_dialed_as_it_is(world: World) -> None:
    start(world, ech=False, server=ServerAddress("192.0.2.77", 443, "/"))
    world.run(1)
    assert world.dials[0][1].addresses == ("192.0.2.77",)
    assert not any(resolver.asked for resolver in world.resolvers.values())


def test_the_wanted_number_of_sessions_is_kept_but_one_goes_first(world: World) -> None:
    start(world, sessions=4)
    status = world.run(2)
    assert len(status.sessions) == 4
    assert len({at for at, _ in world.dials}) == 2
    world.lose_all()
    status = world.run(10)
    assert (status.phase, len(status.sessions)) == ("up", 4)


def test_the_address_that_worked_last_is_tried_first(world: World) -> None:
    world.answer = lambda plan: {"address": "192.0.2.1:443"}
    start(world)
    world.run(10)
    world.lose_all()
    world.run(2)
    assert [plan.addresses[0] for _, plan in world.dials] == ["2001:db8::1", "192.0.2.1"]


def test_of_a_network_a_few_addresses_are_tried_at_a_time_until_one_works(world: World, tmp_path: Path) -> None:
    dice = iter(random.Random(1).random, None)
    good = "192.0.2.77"

    def answer(plan: Any) -> Any:
        return {"address": f"{good}:443"} if good in plan.addresses else REFUSED

    world.answer = answer
    supervisor = start(
        world,
        store=EchStore(tmp_path, clock=world.wall),
        server_ips=("192.0.2.0/24",),
        ech_config=ech_list("mine"),
        uniform=lambda: next(dice),
    )
    for _ in range(100):
        if world.run(30).phase == "up":
            break
    wait_ready(supervisor, 1)
    assert all(len(plan.addresses) == 4 for _, plan in world.dials)
    assert 2 < len(world.dials) < 200
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].addresses[0] == good
    kept = EchStore(tmp_path, clock=world.wall).addresses("secret.test:443 --server-ip")
    assert kept is not None
    assert kept.addresses == (good,)
