"""What a running engine or server is told anew: everything at once, or nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from ech_workers import Tunnel, _native
from ech_workers.arguments import ArgumentError
from ech_workers.demo import Demo
from ech_workers.errors import ListenError, TargetError
from ech_workers.rules import RuleConfig
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Ends = tuple[_native.Engine, _native.Server, _native.DialPlan, bytes]

TOKEN = "correct-horse"


def server_configuration(
    certificate: tuple[bytes, bytes], keys: list[tuple[bytes, bool]], *, tokens: tuple[str, ...] = (TOKEN,)
) -> _native.ServerConfiguration:
    return _native.ServerConfiguration(
        certificates=[certificate], tokens=[(token, token) for token in tokens], ech_keys=keys
    )


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A client and a server in this process, how to dial, and the authority."""
    authority = _native.CertificateAuthority()
    certificate = authority.issue(["hidden.test", "public.test"])
    pem, configs = _native.generate_ech_key(7, "public.test")
    server = _native.Server(server_configuration(certificate, [(pem, True)]), host="127.0.0.1", port=0)
    engine = _native.Engine(_native.EngineConfiguration(ca_pem=[authority.pem], system_roots=False))
    plan = _native.DialPlan(
        server_name="hidden.test",
        port=server.address[1],
        path="/",
        token=TOKEN,
        addresses=["127.0.0.1"],
        ech=configs,
    )
    yield engine, server, plan, authority.pem
    engine.close()
    server.close()


def outcome(engine: _native.Engine, plan: _native.DialPlan) -> _native.SessionUp | _native.DialFailed:
    number = engine.dial(plan)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        event = engine.next_event(1.0)
        if isinstance(event, _native.SessionUp | _native.DialFailed) and event.dial == number:
            return event
    raise AssertionError("the dial did not end")


def dialled(engine: _native.Engine, plan: _native.DialPlan) -> _native.SessionUp:
    event = outcome(engine, plan)
    assert isinstance(event, _native.SessionUp), event.failure.message
    return event


def test_an_engine_keeps_its_session_tickets_until_it_is_to_believe_somebody_else(ends: Ends) -> None:
    engine, _, plan, authority = ends
    assert not dialled(engine, plan).resumed

    def is_resumed() -> bool:
        return dialled(engine, plan).resumed

    # A ticket comes behind the handshake.
    wait_until(is_resumed, "a session is resumed", 30)
    engine.apply(_native.EngineConfiguration(ca_pem=[authority], system_roots=False, max_connections=7))
    assert is_resumed()
    other = _native.CertificateAuthority().pem
    engine.apply(_native.EngineConfiguration(ca_pem=[authority, other], system_roots=False))
    assert not is_resumed()
    engine.apply(_native.EngineConfiguration(ca_pem=[other], system_roots=False))
    failed = outcome(engine, plan)
    assert isinstance(failed, _native.DialFailed)
    assert failed.failure.code == "certificate-unknown-issuer"


@pytest.mark.parametrize(
    "make",
    [
        lambda: _native.EngineConfiguration(ca_pem=[b"nonsense"]),
        lambda: _native.EngineConfiguration(open_timeout=0.0),
        lambda: _native.EngineConfiguration(reply="late"),  # type: ignore[arg-type]
    ],
)
def test_a_configuration_that_cannot_be_used_is_never_made(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^(ca_pem|open_timeout|reply): "):
        make()


def test_a_server_takes_all_of_a_configuration_or_nothing(ends: Ends) -> None:
    engine, server, plan, _ = ends
    certificate = _native.CertificateAuthority().issue(["hidden.test", "public.test"])
    keys = [(_native.generate_ech_key(number, "public.test")[0], True) for number in (8, 8)]
    for wrong, argument in [
        # Everything before the wrong one is another than before.
        (server_configuration(certificate, keys[:1], tokens=("another", "x" * 513)), "tokens"),
        (server_configuration(certificate, keys, tokens=("another",)), "ech_keys"),
        (server_configuration((certificate[0], b"no key"), keys[:1], tokens=("another",)), "certificates"),
        (server_configuration(certificate, [], tokens=("another",)), "ech_keys"),
    ]:
        with pytest.raises(ArgumentError) as refused:
            server.apply(wrong)
        assert refused.value.argument == argument
        assert str(refused.value) == f"{argument}: {refused.value.problem}"
        assert dialled(engine, plan).ech == "accepted"
        assert [token[0] for token in server.tokens()] == [TOKEN]
    server.apply(server_configuration(certificate, keys[:1], tokens=("another",)))
    failed = outcome(engine, plan)
    assert isinstance(failed, _native.DialFailed)
    assert [token[0] for token in server.tokens()] == ["another"]


def test_a_client_whose_new_port_is_taken_keeps_everything_that_it_had() -> None:
    with Demo() as demo:
        tunnel = Tunnel.from_config(demo.client(mode="yamux", listen="127.0.0.1:0"))
        try:
            tunnel.start()
            tunnel.wait_ready(30)
            before = demo.client(mode="yamux", listen="127.0.0.1:0")
            taken = msgspec.structs.replace(before.listen[0], port=demo.target_address[1])
            nothing = RuleConfig(to="block", networks=("0.0.0.0/0", "::/0"))
            other = msgspec.structs.replace(before, listen=(*before.listen, taken), rules=(nothing,))
            with pytest.raises(ListenError):
                tunnel.apply(other)
            tunnel.create_connection(demo.target_address, timeout=30).close()
            tunnel.apply(msgspec.structs.replace(other, listen=before.listen))
            with pytest.raises(TargetError) as blocked:
                tunnel.create_connection(demo.target_address, timeout=30)
            assert blocked.value.code == "target-blocked"
        finally:
            tunnel.close()


def test_a_key_directory_that_became_empty_keeps_nothing_else_from_being_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes by the keys from before, also when it is told something else."""
    with Demo() as demo:
        server = demo.server
        key = tmp_path / "first.pem"
        key.write_bytes(_native.generate_ech_key(7, "public.test")[0])
        server.apply(msgspec.structs.replace(server.config, ech_keys=tmp_path))
        key.unlink()
        wait_until(lambda: "the keys in use stay" in caplog.text, "the loss is noticed", 30)
        server.apply(msgspec.structs.replace(server.config, max_streams=9))
        assert server.config.max_streams == 9
        assert server.status()["ech_keys"] == ["first.pem"]
