"""Look-ups: the resolvers' race, records that are missing, the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from ech_workers.ech import Addresses, EchStore
from ech_workers.errors import (
    EchError,
    ResolverError,
)
from ech_workers.readiness import wait_ready
from harness.world import EchLearned, World, bad_list, cached, ech_list, https, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.world import World

# ---------------------------------------------------------------- resolvers


def test_the_next_resolver_is_asked_after_the_head_start_and_the_first_answer_wins(world: World) -> None:
    world.resolvers["a.dns"].delay = 3.0
    start(world, server_ips=("192.0.2.1",))
    status = world.run(1)
    assert status.phase == "up"
    assert world.resolvers["b.dns"].asked[0][0] == pytest.approx(1000.2)
    assert not world.resolvers["c.dns"].asked


def test_a_failing_resolver_is_passed_over_at_once_and_left_alone_for_a_while(world: World) -> None:
    world.resolvers["a.dns"].failure = ("tls", "tls-reset")
    world.zone["secret.test", "HTTPS"] = [https("one", ttl=12)]
    start(world, server_ips=("192.0.2.1",))
    status = world.run(1)
    assert status.phase == "up"
    assert world.resolvers["b.dns"].asked[0][0] == pytest.approx(1000.02)
    failing = status.resolvers[0]
    assert (failing.state, failing.failures) == ("failing", 1)
    assert "tls-reset" in (failing.error or "")
    assert status.resolvers[1].state == "ok"
    assert status.resolvers[2].state == "untried"
    world.run(300)
    assert len(world.resolvers["b.dns"].asked) > 20
    # 2 s doubled up to 120 s.
    assert len(world.resolvers["a.dns"].asked) < 10


def test_the_fastest_resolver_is_asked_first_next_time(world: World) -> None:
    world.resolvers["a.dns"].delay = 1.0
    world.zone["secret.test", "HTTPS"] = [https("one", ttl=20)]
    start(world, server_ips=("192.0.2.1",))
    world.run(5)
    before = len(world.resolvers["a.dns"].asked)
    world.run(60)
    assert len(world.resolvers["a.dns"].asked) == before
    assert len(world.resolvers["b.dns"].asked) >= 3


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_resolver_that_says_servfail_does_not_decide(world: World, rcode: dns.rcode.Rcode) -> None:
    world.resolvers["a.dns"].rcode = rcode
    start(world)
    assert world.run(1).phase == "up"


@pytest.mark.parametrize(
    "garble",
    [
        lambda wire: wire[:20],
        lambda wire: b"\x12\x34" + wire[2:],
        lambda wire: wire[:2] + bytes([wire[2] | 2]) + wire[3:],
        lambda wire: b"<html>",
        lambda wire: wire[:12] + b"\x05wrong" + wire[18:],
    ],
    ids=["cut", "other id", "truncated", "page", "other question"],
)
def test_a_hostile_answer_does_not_decide(world: World, garble: Callable[[bytes], bytes]) -> None:
    world.resolvers["a.dns"].garble = garble
    start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert status.resolvers[0].state == "failing"


def test_a_resolver_that_filters_does_not_decide(world: World) -> None:
    world.resolvers["a.dns"].zone = {}
    start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert world.dials[0][1].ech == ech_list("one")
    assert status.resolvers[0].state == "ok"


def test_a_resolver_that_blocks_by_address_does_not_decide(world: World) -> None:
    world.resolvers["a.dns"].zone = {
        **world.zone,
        ("secret.test", "A"): ["60 0.0.0.0"],
        ("secret.test", "AAAA"): ["60 ::"],
    }
    start(world)
    world.run(1)
    assert set(world.dials[0][1].addresses) <= {"2001:db8::1", "192.0.2.1"}


def test_a_resolver_that_wants_get_is_asked_by_get(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.methods = ("GET",)
    start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert all(resolver.failures == 0 for resolver in status.resolvers)


def test_time_in_caches_shortens_the_life_of_an_answer(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.age = 280
    start(world)
    status = world.run(0.5)
    assert status.ech is not None
    assert status.ech.expires_in == pytest.approx(20, abs=1)


def test_all_resolvers_down_is_said_with_each_ones_reason_and_ends_when_one_is_back(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.failure = ("tcp", "tcp-unreachable")
    supervisor = start(world)
    status = world.run(1)
    assert status.cause is not None
    assert issubclass(status.cause.kind, ResolverError)
    for name in "abc":
        assert f"{name}.dns" in status.cause.message
    assert status.phase == "waiting"
    assert status.next_attempt_in is not None
    assert world.reason == status.cause.line()
    with pytest.raises(ResolverError):
        wait_ready(supervisor, 5)
    assert world.dials == []
    world.run(120)
    world.resolvers["b.dns"].failure = None
    status = world.run(60)
    assert status.phase == "up"
    assert status.cause is None
    assert world.reason is None


# ---------------------------------------------------------------- no configuration


def test_no_https_record_is_an_error_and_never_a_connection_in_clear(world: World) -> None:
    del world.zone["secret.test", "HTTPS"]
    supervisor = start(world)
    status = world.run(5)
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    assert status.cause.code == "ech-no-config"
    assert "--ech-domain" in status.cause.line()
    assert world.dials == []
    with pytest.raises(EchError):
        wait_ready(supervisor, 1)


def test_a_record_without_ech_is_an_error_too(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = ["300 1 . alpn=h2"]
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert status.cause.code == "ech-no-config"
    assert world.dials == []


@pytest.mark.parametrize("text", ["unreadable", "unknown version"])
def test_a_configuration_that_cannot_be_used_is_an_error(world: World, text: str) -> None:
    world.zone["secret.test", "HTTPS"] = [https(text)]
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    assert status.cause.code == "ech-config-invalid"
    assert world.dials == []


def test_a_name_that_does_not_exist_is_said_so(world: World) -> None:
    world.zone.clear()
    start(world, ech_config=ech_list("mine"))
    status = world.run(1)
    assert status.cause is not None
    assert status.cause.code == "resolver-no-name"
    assert "secret.test does not exist" in status.cause.message


def test_a_record_published_later_is_found(world: World) -> None:
    published = world.zone.pop(("secret.test", "HTTPS"))
    start(world)
    world.run(60)
    world.zone["secret.test", "HTTPS"] = published
    assert world.run(60).phase == "up"


def test_a_cached_configuration_that_no_plan_accepts_is_looked_up_again(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, bad_list("plan")))
    start(world, store=store)
    assert world.run(2).phase == "up"
    assert world.dials[0][1].ech == ech_list("one")


def test_a_published_configuration_that_no_plan_accepts_is_an_error(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("bad for plan")]
    supervisor = start(world)
    status = world.run(5)
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    with pytest.raises(EchError):
        wait_ready(supervisor, 1)
    asked = sum(kind == "HTTPS" for resolver in world.resolvers.values() for _, _, kind in resolver.asked)
    assert asked < 6


def test_bootstrap_asks_the_server_itself_when_no_resolver_answers(world: World, tmp_path: Path) -> None:
    for resolver in world.resolvers.values():
        resolver.failure = ("tcp", "tcp-unreachable")
    made_up = ech_list("made up for public.test")
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("true")), {"retried": True})
    supervisor = start(
        world, store=EchStore(tmp_path, clock=world.wall), ech_bootstrap="public.test", server_ips=("192.0.2.1",)
    )
    status = world.run(2)
    assert status.phase == "up"
    wait_ready(supervisor, 1)
    assert world.dials[0][1].ech == made_up
    world.answer = lambda plan: "up"
    world.run(10)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == ech_list("true")
    kept = EchStore(tmp_path, clock=world.wall).configuration("secret.test:443")
    assert kept is not None
    assert kept.configs == ech_list("true")


def test_bootstrap_is_not_used_while_a_resolver_answers(world: World) -> None:
    start(world, ech_bootstrap="public.test")
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [ech_list("one")]


# ---------------------------------------------------------------- the cache


def test_a_warm_cache_is_enough_when_every_resolver_is_down(world: World, tmp_path: Path) -> None:
    before = EchStore(tmp_path, clock=world.wall)
    before.store("secret.test:443", cached(world, age=100_000))
    before.store_addresses("secret.test", Addresses(("192.0.2.5",), world.wall() - 100_000, 60))
    for resolver in world.resolvers.values():
        resolver.failure = ("tcp", "tcp-timeout")
        resolver.delay = 5.0
    supervisor = start(world, store=EchStore(tmp_path, clock=world.wall))
    status = world.run(0.2)
    assert status.phase == "up"
    assert world.dials[0][0] == 1000.0
    assert status.ech is not None
    assert status.ech.expires_in is not None
    assert status.ech.expires_in < 0
    assert status.ech.refreshing
    wait_ready(supervisor, 1)
    status = world.run(30)
    assert (status.phase, status.cause) == ("up", None)
    assert status.ech is not None
    assert "no resolver answers" in (status.ech.problem or "")


def test_a_stale_configuration_is_used_while_a_new_one_is_looked_for(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, age=1000))
    start(world, store=store, server_ips=("192.0.2.1",))
    status = world.run(1)
    assert world.dials[0][1].ech == ech_list("cached")
    assert status.ech is not None
    assert status.ech.age is not None
    assert status.ech.age <= 1
    world.lose_all()
    world.run(10)
    assert world.dials[-1][1].ech == ech_list("one")


def test_a_fresh_configuration_is_not_asked_for_until_shortly_before_it_expires(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, age=100, ttl=300))
    start(world, store=store, server_ips=("192.0.2.1",))
    world.run(139)
    assert not world.resolvers["a.dns"].asked
    world.run(2)
    assert len(world.resolvers["a.dns"].asked) == 1
    # From then on always before its end, never in a hurry.
    for _ in range(20):
        status = world.run(60)
        assert status.ech is not None
        assert status.ech.expires_in is not None
        assert status.ech.expires_in > 0
    assert len(world.resolvers["a.dns"].asked) <= 7


def test_a_ttl_of_a_second_does_not_become_a_flood(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("one", ttl=0)]
    start(world, server_ips=("192.0.2.1",))
    assert world.run(100).phase == "up"
    assert len(world.resolvers["a.dns"].asked) <= 11


def test_what_another_process_looked_up_is_used(world: World, tmp_path: Path) -> None:
    start(world, store=EchStore(tmp_path, clock=world.wall), server_ips=("192.0.2.1",))
    world.run(1)
    other = EchStore(tmp_path, clock=world.wall)
    other.store("secret.test:443", cached(world, ech_list("other"), age=-200))
    world.lose_all()
    world.run(10)
    assert world.dials[-1][1].ech == ech_list("other")


def test_the_cache_of_another_ech_domain_is_not_used(world: World) -> None:
    world.zone["cdn.test", "HTTPS"] = [https("cdn")]
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world))
    start(world, store=store, ech_domain="cdn.test")
    assert world.run(1).phase == "up"
    assert world.dials[0][1].ech == ech_list("cdn")


@pytest.mark.parametrize("code", ["certificate-name", "certificate-unknown-issuer"])
def test_foreign_certificates_of_every_resolver_are_called_an_interception(world: World, code: str) -> None:
    for resolver in world.resolvers.values():
        resolver.failure = ("certificate", code)
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert status.cause.code == "resolver-intercepted"
    assert "in place of every resolver" in status.cause.message
    assert "captive portal" in (status.cause.advice or "")


def test_a_foreign_certificate_of_one_resolver_is_not_called_an_interception(world: World) -> None:
    for name, failure in (("a", "certificate-name"), ("b", "tls-reset"), ("c", "certificate-name")):
        world.resolvers[f"{name}.dns"].failure = ("certificate" if name != "b" else "tls", failure)
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert status.cause.code == "resolver-failed"
