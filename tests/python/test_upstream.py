"""What dials teach, and what their failures lead to."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import pytest

from ech_workers.ech import Addresses, EchStore
from ech_workers.errors import (
    CertificateError,
    ConnectError,
    EchError,
    SessionError,
    TokenError,
    TunnelError,
)
from ech_workers.readiness import wait_ready
from harness.world import REFUSED, EchLearned, H2Chosen, World, cached, ech_list, https, refuse, start

if TYPE_CHECKING:
    from pathlib import Path

    from harness.world import World

# ---------------------------------------------------------------- what is learned


def test_retry_configurations_are_used_for_the_next_dial_and_kept(world: World, tmp_path: Path) -> None:
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("retry")), {"retried": True})
    store = EchStore(tmp_path, clock=world.wall)
    start(world, store=store)
    status = world.run(1)
    assert status.sessions[0].retried
    assert status.ech is not None
    assert status.ech.source == "retry"
    world.answer = lambda plan: "up"
    world.lose_all()
    # The published record is still the old one; its refresh must not bring it back.
    world.run(4000)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials[1:]] == [ech_list("retry")] * (len(world.dials) - 1)
    kept = EchStore(tmp_path, clock=world.wall).configuration("secret.test:443")
    assert kept is not None
    assert kept.configs == ech_list("retry")
    world.zone["secret.test", "HTTPS"] = [https("two")]
    world.run(4000)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == ech_list("two")


def test_retry_configurations_replace_the_options_own(world: World) -> None:
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("retry")), "up")
    start(world, ech_config=ech_list("mine"))
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [ech_list("mine"), ech_list("retry")]


def test_retry_configurations_known_from_another_rejection_are_used_for_this_option_too(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.learn("secret.test:443", ech_list("retry"), used=cached(world))
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("retry")), "up")
    start(world, store=store, ech_config=ech_list("mine"))
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [ech_list("mine"), ech_list("retry")]


def test_retry_configurations_for_another_name_are_not_ours(world: World) -> None:
    world.answer = lambda plan: (EchLearned(server_name="other.test", configs=ech_list("retry")), "up")
    start(world)
    world.run(10)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == ech_list("one")


def test_a_second_rejection_is_tried_once_more_with_what_came_with_it(world: World) -> None:
    failures = iter([refuse("ech", "ech-rejected", retry_configs=ech_list("third"))])
    world.answer = lambda plan: next(failures, "up")
    supervisor = start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert world.dials[-1][1].ech == ech_list("third")
    wait_ready(supervisor, 1)


def test_a_server_that_always_rejects_is_not_hammered(world: World) -> None:
    counter = itertools.count()
    world.answer = lambda plan: refuse("ech", "ech-rejected", retry_configs=ech_list(f"retry {next(counter)}"))
    supervisor = start(world)
    status = world.run(60)
    assert len(world.dials) < 12
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    with pytest.raises(EchError):
        wait_ready(supervisor, 1)


def test_a_server_that_chooses_h2_is_met_with_the_websocket_hello_from_then_on(world: World, tmp_path: Path) -> None:
    world.answer = lambda plan: "up" if plan.h2_known else (H2Chosen(server_name="secret.test"), "up")
    start(world, store=EchStore(tmp_path, clock=world.wall))
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.h2_known for _, plan in world.dials] == [False, True]
    assert EchStore(tmp_path, clock=world.wall).is_h2_known("secret.test:443")


def of_entries(*texts: bytes) -> bytes:
    whole = b"".join(b"\xfe\x0d" + len(text).to_bytes(2, "big") + text for text in texts)
    return len(whole).to_bytes(2, "big") + whole


def test_when_a_lists_first_entry_is_another_servers_the_next_one_is_tried(world: World) -> None:
    both, second = of_entries(b"foreign", b"own"), of_entries(b"own")
    foreign = refuse("certificate", "certificate-name", ech_rejected=True)
    world.answer = lambda plan: "up" if plan.ech == second else foreign
    start(world, ech_config=both)
    assert world.run(1).phase == "up"
    assert [plan.ech for _, plan in world.dials] == [both, second]
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == second


def test_what_the_server_hands_over_after_the_next_entry_replaces_the_whole_list(world: World) -> None:
    both, second = of_entries(b"foreign", b"own"), of_entries(b"own")
    foreign = refuse("certificate", "certificate-name", ech_rejected=True)
    learned = EchLearned(server_name="secret.test", configs=ech_list("retry"))
    world.answer = lambda plan: (learned, "up") if plan.ech == second else foreign if plan.ech == both else "up"
    start(world, ech_config=both)
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [both, second, ech_list("retry")]


def test_a_list_none_of_whose_entries_is_the_servers_ends_in_an_error(world: World) -> None:
    both = of_entries(b"foreign", b"other")
    world.answer = lambda plan: refuse("certificate", "certificate-name", ech_rejected=True)
    supervisor = start(world, ech_config=both)
    world.run(60)
    assert len(world.dials) < 12
    with pytest.raises(CertificateError):
        wait_ready(supervisor, 1)


# ---------------------------------------------------------------- each cause


@pytest.mark.parametrize(
    ("layer", "code", "kind"),
    [
        ("tcp", "tcp-refused", ConnectError),
        ("tcp", "tcp-timeout", ConnectError),
        ("certificate", "certificate-unknown-issuer", CertificateError),
        ("certificate", "certificate-expired", CertificateError),
        ("token", "token-rejected", TokenError),
        ("ech", "ech-disabled", EchError),
        ("yamux", "yamux-protocol", SessionError),
    ],
)
def test_each_cause_is_raised_shown_given_to_programs_and_logged_once(
    world: World, layer: str, code: str, kind: type[TunnelError], caplog: pytest.LogCaptureFixture
) -> None:
    world.answer = lambda plan: refuse(layer, code)
    supervisor = start(world)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        status = world.run(1)
        with pytest.raises(kind) as caught:
            wait_ready(supervisor, 5)
        assert caught.value.code == code
        assert status.cause is not None
        assert issubclass(status.cause.kind, kind)
        assert status.phase in ("waiting", "connecting")
        assert "secret.test" in status.cause.message
        assert world.reason == status.cause.line()
        world.run(300)
    assert [record.getMessage() for record in caplog.records].count(status.cause.line()) == 1
    assert len(caplog.records) == 1
    assert supervisor.status().cause_age == pytest.approx(300, abs=2)
    world.answer = lambda plan: "up"
    status = world.run(120)
    assert status.phase == "up"
    assert status.cause is None
    assert world.reason is None


def test_another_cause_is_logged_when_it_comes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    answers = itertools.chain([REFUSED] * 4, itertools.repeat(refuse("token", "token-rejected")))
    world.answer = lambda plan: next(answers)
    start(world)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        world.run(100)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["tcp", "token"]


def test_the_source_of_the_configuration_is_named_when_the_server_has_no_ech(world: World) -> None:
    world.answer = lambda plan: refuse("ech", "ech-disabled")
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert "the HTTPS record of secret.test" in status.cause.message


def test_a_dial_with_cached_records_that_fails_looks_them_up_before_it_is_an_error(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world))
    store.store_addresses("secret.test", Addresses(("192.0.2.66",), world.wall(), 300))
    world.answer = lambda plan: "up" if "192.0.2.1" in plan.addresses else REFUSED
    supervisor = start(world, store=store)
    status = world.run(1)
    assert status.phase == "up"
    wait_ready(supervisor, 1)
    assert not any(verb == "unavailable" and reason for verb, reason, *_ in world.verbs if verb == "unavailable")

    again = EchStore(None, clock=world.wall)
    again.store("secret.test:443", cached(world, ech_list("gone")))
    world.answer = lambda plan: refuse("ech", "ech-disabled") if plan.ech == ech_list("gone") else "up"
    world.close()
    world.closed, world.thread, world.dials = False, None, []
    world.live.clear()
    start(world, store=again)
    assert world.run(1).phase == "up"
    assert [plan.ech for _, plan in world.dials] == [ech_list("gone"), ech_list("one")]


def test_a_configuration_the_handshake_cannot_use_is_not_tried_again_from_the_cache(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, ech_list("odd")))
    world.answer = lambda plan: refuse("ech", "ech-config-invalid") if plan.ech == ech_list("odd") else "up"
    start(world, store=store)
    assert world.run(1).phase == "up"
    assert [plan.ech for _, plan in world.dials] == [ech_list("odd"), ech_list("one")]


# ---------------------------------------------------------------- backoff and breaker


def test_pauses_between_failed_dials_grow_and_the_breaker_opens(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world, server_ips=("192.0.2.1",), sessions=8)
    world.run(0.3)
    status = world.run(20)
    assert status.breaker == "open"
    status = world.run(400)
    gaps = [later - earlier - world.dial_time for (earlier, _), (later, _) in itertools.pairwise(world.dials)]
    assert gaps[:4] == pytest.approx([0.5, 1, 2, 4], abs=0.2)
    assert gaps[4:7] == pytest.approx([15, 30, 60], abs=0.2)
    assert max(gaps) <= 61
    assert status.breaker == "open"
    assert status.next_attempt_in is not None
    assert 0 <= status.next_attempt_in <= 60


def test_one_dial_probes_when_the_breaker_was_open_and_success_closes_it(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world, server_ips=("192.0.2.1",), sessions=4)
    world.run(20)
    world.answer = lambda plan: "up"
    before = len(world.dials)
    world.dial_time = 5.0
    while len(world.dials) == before:
        status = world.run(0.5)
    assert status.breaker == "half-open"
    assert len(world.dials) == before + 1
    status = world.run(20)
    assert (status.breaker, status.phase, status.failures) == ("closed", "up", 0)
    assert len(status.sessions) == 4


@pytest.mark.parametrize(("asked", "waited"), [(120.0, 120.0), (86400.0, 3600.0), (0.0, 0.5)])
def test_the_pause_that_a_server_asks_for_is_kept_up_to_a_limit(world: World, asked: float, waited: float) -> None:
    world.answer = lambda plan: refuse("websocket", "websocket-busy", retry_after=asked)
    start(world, server_ips=("192.0.2.1",), ech_config=ech_list("mine"))
    world.run(8000)
    (first, _), (second, _) = world.dials[:2]
    assert second - first - world.dial_time == pytest.approx(waited, abs=0.1)


def test_what_does_not_pass_by_itself_is_tried_rarely(world: World) -> None:
    world.answer = lambda plan: refuse("token", "token-rejected")
    start(world)
    world.run(300)
    assert 5 <= len(world.dials) <= 8


def test_local_programs_are_told_only_when_there_is_no_session_at_all(world: World) -> None:
    start(world, sessions=2)
    world.run(10)
    world.answer = lambda plan: REFUSED
    session = next(iter(world.live))
    for event in world.lose(session):
        world.post(0.0, event)
    status = world.run(5)
    assert status.phase == "degraded"
    assert status.cause is not None
    assert world.reason is None
    world.lose_all()
    world.run(5)
    assert world.reason is not None
    world.answer = lambda plan: "up"
    world.run(120)
    assert world.reason is None
