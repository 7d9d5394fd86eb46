"""What a failing tunnel tells a person and a program."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from ech_workers import advices, errors
from ech_workers.errors import (
    CertificateError,
    ConfigError,
    ConnectError,
    ConnectTimeout,
    EchError,
    EngineClosed,
    ListenError,
    ResolverError,
    SessionError,
    SessionTimeout,
    TargetError,
    TargetTimeout,
    TlsError,
    TlsTimeout,
    TokenError,
    TunnelError,
    WebSocketError,
    WebSocketTimeout,
    from_failure,
)

if TYPE_CHECKING:
    from ech_workers._native import Failure


def failure(
    layer: str,
    code: str,
    message: str = "it failed",
    detail: str | None = None,
    retry_configs: bytes | None = None,
    retry_after: float | None = None,
) -> Failure:
    return cast(
        "Failure",
        SimpleNamespace(
            layer=layer,
            code=code,
            message=message,
            detail=detail,
            retry_configs=retry_configs,
            retry_after=retry_after,
        ),
    )


# Layer, code, class, exit code: what docs/reference/errors.md promises.
PROMISED = [
    ("resolver", "http-status", ResolverError, 3),
    ("tcp", "tcp-refused", ConnectError, 4),
    ("tcp", "tcp-timeout", ConnectTimeout, 4),
    ("tls", "tls-reset", TlsError, 5),
    ("tls", "tls-version", TlsError, 5),
    ("tls", "tls-not-spoken", TlsError, 5),
    ("ech", "ech-not-accepted", EchError, 6),
    ("ech", "ech-rejected", EchError, 6),
    ("ech", "ech-disabled", EchError, 6),
    ("certificate", "certificate-expired", CertificateError, 7),
    ("certificate", "certificate-unknown-issuer", CertificateError, 7),
    ("websocket", "websocket-status", WebSocketError, 8),
    ("websocket", "websocket-redirect", WebSocketError, 8),
    ("websocket", "websocket-busy", WebSocketError, 8),
    ("websocket", "server-full", WebSocketError, 8),
    ("websocket", "cdn-challenge", WebSocketError, 8),
    ("websocket", "cdn-refused", WebSocketError, 8),
    ("websocket", "cdn-origin", WebSocketError, 8),
    ("token", "token-rejected", TokenError, 9),
    ("tls", "tls-timeout", TlsTimeout, 5),
    ("websocket", "websocket-timeout", WebSocketTimeout, 8),
    ("target", "target-timeout", TargetTimeout, 11),
    ("yamux", "yamux-ping-timeout", SessionTimeout, 10),
    ("local", "no-session", SessionError, 10),
    ("target", "target-refused", TargetError, 11),
    ("local", "shutdown", EngineClosed, 1),
]


@pytest.mark.parametrize(("layer", "code", "kind", "exit_code"), PROMISED)
def test_a_native_failure_becomes_the_class_of_its_layer(
    layer: str, code: str, kind: type[TunnelError], exit_code: int
) -> None:
    error = from_failure(failure(layer, code))
    assert type(error) is kind
    assert error.code == code
    assert error.layer == layer
    assert error.exit_code == exit_code


@pytest.mark.parametrize(("layer", "code", "kind", "exit_code"), PROMISED)
def test_failures_fit_the_standard_hierarchy(layer: str, code: str, kind: type[TunnelError], exit_code: int) -> None:
    error = from_failure(failure(layer, code))
    assert isinstance(error, OSError)
    assert isinstance(error, ConnectionError) == (layer not in ("resolver", "ech", "certificate", "token"))
    assert isinstance(error, TimeoutError) == code.endswith("-timeout")


def test_a_cause_makes_an_exception_for_each_raise() -> None:
    cause = from_failure(failure("ech", "ech-rejected", detail="d", retry_configs=b"x")).cause
    first, second = cause.error(), cause.error()
    assert first is not second
    assert isinstance(second, EchError)
    assert (second.line(), second.detail, second.retry_configs) == (first.line(), "d", b"x")
    assert second.cause == cause
    assert ConfigError("is missing", option="--server").cause.error().line() == "config: --server: is missing"


def test_the_wait_that_a_server_asks_for_travels_with_the_error() -> None:
    error = from_failure(failure("websocket", "websocket-busy", retry_after=30.0))
    assert isinstance(error, WebSocketError)
    assert error.retry_after == 30.0
    assert cast("WebSocketError", error.cause.error()).retry_after == 30.0


def of_this_module() -> list[type[TunnelError]]:
    """Those of a layer. Other modules have errors of their own, which a test before this one may have imported."""
    return [kind for kind in TunnelError.__subclasses__() if kind.__module__ == errors.__name__]


def test_every_layer_has_its_own_exit_code() -> None:
    classes = [kind for kind in of_this_module() if kind is not EngineClosed]
    codes = [kind.exit_code for kind in classes]
    assert sorted(codes) == list(range(2, 13))


def test_the_line_says_layer_what_why_and_what_to_do() -> None:
    error = from_failure(failure("token", "token-rejected", "the server does not accept this token (or this path)"))
    assert error.line() == (
        "token: the server does not accept this token (or this path); check --token and the path in --server"
    )
    assert str(error) == error.line()


def test_the_line_is_one_line_whatever_the_peer_sent() -> None:
    error = from_failure(failure("target", "target-failed", "ERROR: first\r\nsecond\nthird"))
    assert error.line() == "target: ERROR: first second third"


def test_the_server_is_named_once() -> None:
    assert from_failure(failure("tcp", "x", "connection refused"), server="a.test:443").message == (
        "a.test:443: connection refused"
    )
    assert from_failure(failure("tcp", "x", "a.test:443 refused"), server="a.test:443").message == "a.test:443 refused"


def test_a_failure_below_a_look_up_is_the_resolvers() -> None:
    error = from_failure(failure("tcp", "tcp-refused", "refused"), resolver="https://dns.test/dns-query")
    assert type(error) is ResolverError
    assert error.line().startswith("resolver: https://dns.test/dns-query: refused; try other resolvers")
    assert error.code == "tcp-refused"


def test_authenticated_retry_configurations_travel_with_the_error() -> None:
    error = from_failure(failure("ech", "ech-rejected", retry_configs=b"\x00\x01x"))
    assert isinstance(error, EchError)
    assert error.retry_configs == b"\x00\x01x"


def test_a_layer_that_is_not_known_yet_is_an_internal_error() -> None:
    error = from_failure(failure("quic", "quic-x"))
    assert type(error) is TunnelError
    assert error.exit_code == 1


def test_advice_can_be_replaced_and_taken_away() -> None:
    assert ConnectError("x", code="tcp-refused", advice="do this").line() == "tcp: x; do this"
    assert ConnectError("x", code="tcp-refused", advice="").line() == "tcp: x"


def test_a_port_in_use_is_named_with_the_cure() -> None:
    error = ListenError.from_os_error("127.0.0.1:1080", OSError(errno.EADDRINUSE, "Address already in use"))
    assert error.line() == (
        "local: cannot listen on 127.0.0.1:1080: the port is in use;"
        " stop the program that has it, or choose another port with --listen"
    )
    assert error.exit_code == 12


def test_a_wrong_option_is_named() -> None:
    error = ConfigError("is missing", option="--server")
    assert error.line() == "config: --server: is missing"
    assert error.option == "--server"


def test_the_native_module_can_say_closed_without_a_text() -> None:
    assert EngineClosed().line() == "local: the tunnel is closed"


def test_errors_survive_a_process_boundary() -> None:
    error = from_failure(failure("tcp", "tcp-refused", "refused", detail="errno 111"))
    copy = pickle.loads(pickle.dumps(error))
    assert copy.line() == error.line()
    assert copy.detail == "errno 111"


def test_every_class_is_exported() -> None:
    kinds: list[type[TunnelError]] = [TunnelError, *of_this_module()]
    for kind in kinds:
        assert kind.__name__ in errors.__all__


def test_every_code_with_advice_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
    for code in advices.OF_CODES:
        assert f"`{code}`" in reference, code
