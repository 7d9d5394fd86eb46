# ruff: noqa: N818 (what a deadline or a reset ends is named for it, as httpx does)
"""What can go wrong, one class a layer. They fit the standard hierarchy as well, so that programs written for sockets
need not know them: all are ``OSError``, connections and targets that cannot be had or break are ``ConnectionError``, and
deadlines that passed are ``TimeoutError``.

    OSError
    └── TunnelError              exit code
        ├── ConfigError          2   an option, an environment variable, a file that an option names
        ├── ResolverError        3   the look-up over DoH
        ├── ConnectError         4   TCP to the server (ConnectionError)
        ├── TlsError             5   the TLS handshake, or the connection later on (ConnectionError)
        ├── EchError             6   no ECH configuration, a bad one, or one that the server rejects
        ├── CertificateError     7   the server's certificate
        ├── WebSocketError       8   the upgrade, or the WebSocket connection (ConnectionError)
        ├── TokenError           9   the server does not accept the token
        ├── SessionError         10  yamux, or no session to be had (ConnectionError)
        │   └── StreamReset          a stream that was open was reset, or its session was lost (ConnectionResetError)
        ├── TargetError          11  the target behind the server (ConnectionError)
        ├── ListenError          12  the local port
        └── EngineClosed         1   the tunnel was closed while in use (ConnectionError)

ResolverTimeout, ConnectTimeout, TlsTimeout, WebSocketTimeout, SessionTimeout and TargetTimeout are those of their layer
whose reason is a deadline that passed; they are ``TimeoutError`` too.

Every one carries the same attributes, so a caller may branch on the class, on ``layer`` or on ``code``:

* ``layer``: where it happened, one word;
* ``code``: a stable word for programs (``tcp-refused``, ``ech-rejected``, ...; docs/reference/errors.md lists them);
* ``message``: what failed and why, one line;
* ``advice``: what to do about it, or None;
* ``detail``: what a developer would want beside it, or None (``-v`` prints it);
* ``exit_code``: what the command line ends with;
* ``cause``: all of that as a value, which may be kept: ``cause.error()`` makes an exception to raise. An exception that
  was raised should not be kept to be raised again: each raise makes its traceback longer.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ech_workers import advices

if TYPE_CHECKING:
    from ech_workers._native import Failure

__all__ = [
    "Cause",
    "CertificateError",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "EchError",
    "EngineClosed",
    "ListenError",
    "ResolverError",
    "ResolverTimeout",
    "SessionError",
    "SessionTimeout",
    "StreamReset",
    "TargetError",
    "TargetTimeout",
    "TlsError",
    "TlsTimeout",
    "TokenError",
    "TunnelError",
    "WebSocketError",
    "WebSocketTimeout",
    "connect_error",
    "from_failure",
]


class Cause(NamedTuple):
    """What a ``TunnelError`` says, as a value: it can be kept, compared and handed on, and is never raised itself."""

    kind: type[TunnelError]
    """The class of the exception."""
    layer: str
    code: str
    message: str
    advice: str | None
    detail: str | None
    more: tuple[tuple[str, object], ...] = ()
    """What the class has beside these (``option``, ``retry_configs``, ``retry_after``)."""

    @property
    def exit_code(self) -> int:
        """What the command line ends with."""
        return self.kind.exit_code

    def line(self) -> str:
        """The whole of it in one line: ``layer: what failed: why; what to do``."""
        line = f"{self.layer}: {self.message}"
        return f"{line}; {self.advice}" if self.advice else line

    def error(self) -> TunnelError:
        """A new exception that says this."""
        error = self.kind(self.message)
        error.code, error.layer, error.message = self.code, self.layer, self.message
        error.advice, error.detail = self.advice, self.detail
        for name, value in self.more:
            setattr(error, name, value)
        return error


class TunnelError(OSError):
    """Any failure of the tunnel. ``str(error)`` is ``error.line()``."""

    default_layer: ClassVar[str] = "internal"
    default_code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    _more: ClassVar[tuple[str, ...]] = ()
    """Attributes of the class that are part of its cause."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        layer: str | None = None,
        detail: str | None = None,
        advice: str | None = None,
    ) -> None:
        """Without advice, the text that belongs to the code is used, if there is one."""
        super().__init__(message)
        self.message = _one_line(message)
        self.code = code or self.default_code
        self.layer = layer or self.default_layer
        self.detail = detail
        self.advice = advices.OF_CODES.get(self.code) if advice is None else (advice or None)

    @property
    def cause(self) -> Cause:
        """What this says, as a value."""
        more = tuple((name, getattr(self, name)) for name in self._more)
        return Cause(type(self), self.layer, self.code, self.message, self.advice, self.detail, more)

    def line(self) -> str:
        """The whole of it in one line: ``layer: what failed: why; what to do``."""
        return self.cause.line()

    def __str__(self) -> str:
        return self.line()


class ConfigError(TunnelError):
    """An option that cannot be right; ``option`` names it as the command line spells it."""

    default_layer = "config"
    default_code = "config-invalid"
    exit_code = 2
    _more = ("option",)

    def __init__(
        self,
        message: str,
        *,
        option: str | None = None,
        code: str | None = None,
        detail: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(f"{option}: {message}" if option else message, code=code, detail=detail, advice=advice)
        self.option = option


class ResolverError(TunnelError):
    """No DoH resolver gave a usable answer."""

    default_layer = "resolver"
    default_code = "resolver-failed"
    exit_code = 3


class ConnectError(TunnelError, ConnectionError):
    """TCP to the server could not be had, or broke."""

    default_layer = "tcp"
    default_code = "tcp-failed"
    exit_code = 4


class TlsError(TunnelError, ConnectionError):
    """The TLS handshake or connection failed for a reason other than ECH and the certificate."""

    default_layer = "tls"
    default_code = "tls-failed"
    exit_code = 5


class EchError(TunnelError):
    """ECH cannot be used.

    ``retry_configs`` holds an authenticated ECHConfigList if the server handed one over (RFC 9849 section 6.1.6).
    """

    default_layer = "ech"
    default_code = "ech-config-invalid"
    exit_code = 6
    _more = ("retry_configs",)
    retry_configs: bytes | None = None


class CertificateError(TunnelError):
    """The certificate was not accepted."""

    default_layer = "certificate"
    default_code = "certificate-invalid"
    exit_code = 7


class WebSocketError(TunnelError, ConnectionError):
    """The upgrade was refused, or the WebSocket connection ended wrongly.

    ``retry_after`` is how many seconds the server, or a CDN before it, asks to wait before the next try, if it does.
    """

    default_layer = "websocket"
    default_code = "websocket-protocol"
    exit_code = 8
    _more = ("retry_after",)
    retry_after: float | None = None


class TokenError(TunnelError):
    """The server does not accept the token, or the path is another's."""

    default_layer = "token"
    default_code = "token-rejected"
    exit_code = 9


class SessionError(TunnelError, ConnectionError):
    """A yamux session failed, or there is none to open a stream on."""

    default_layer = "yamux"
    default_code = "yamux-protocol"
    exit_code = 10


class TargetError(TunnelError, ConnectionError):
    """The server could not reach the target, or was not willing to."""

    default_layer = "target"
    default_code = "target-failed"
    exit_code = 11


class ListenError(TunnelError):
    """A local port could not be opened."""

    default_layer = "local"
    default_code = "listen-failed"
    exit_code = 12

    @classmethod
    def from_os_error(cls, address: str, error: OSError, *, option: str = "--listen") -> ListenError:
        """Says why listening on ``address`` (host:port) failed; ``option`` is the one that gave it."""
        why, code = _LISTEN_REASONS.get(error.errno or 0, (error.strerror or str(error), "listen-failed"))
        advice = advices.OF_CODES.get(code, "").replace("--listen", option)
        return cls(f"cannot listen on {address}: {why}", code=code, detail=str(error), advice=advice)


class EngineClosed(TunnelError, ConnectionError):
    """The tunnel was closed."""

    default_layer = "local"
    default_code = "shutdown"
    exit_code = 1

    def __init__(
        self,
        message: str = "the tunnel is closed",
        *,
        code: str | None = None,
        layer: str | None = None,
        detail: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message, code=code, layer=layer, detail=detail, advice=advice)


class ResolverTimeout(ResolverError, TimeoutError):
    """No resolver answered in time."""


class ConnectTimeout(ConnectError, TimeoutError):
    """The server's address did not answer in time."""


class TlsTimeout(TlsError, TimeoutError):
    """The TLS handshake took too long."""


class WebSocketTimeout(WebSocketError, TimeoutError):
    """The upgrade was not answered in time."""


class SessionTimeout(SessionError, TimeoutError):
    """No session came up before the deadline, or the session answered no ping in time."""


class TargetTimeout(TargetError, TimeoutError):
    """The target, or the server's word about it, did not come before the deadline."""


class StreamReset(SessionError, ConnectionResetError):
    """A stream that was open ended in the middle: the target's connection was reset, or the session was lost.

    What was received before is all there is, and less than what was sent.
    """

    default_code = "stream-reset"


BLAMED_ON_ADDRESS = frozenset({"tcp-refused", "tcp-timeout", "tcp-unreachable", "tcp-reset", "tcp-failed"})

BLAMED_ON_ENDPOINT = BLAMED_ON_ADDRESS | {
    "tls-alert",
    "tls-reset",
    "tls-timeout",
    "tls-version",
    "ech-disabled",
    "websocket-timeout",
    "websocket-status",
    "websocket-redirect",
    "websocket-busy",
    "server-full",
    "cdn-challenge",
    "cdn-refused",
    "cdn-origin",
}
"""After these another endpoint of the same server may do better."""

BLAMED_ON_ECH = frozenset({"ech-rejected", "ech-disabled", "ech-config-invalid", "certificate-name"})
"""After these another ECH configuration may do better."""

BLAMED_ON_TARGET = frozenset({"resolver-no-name", "resolver-no-address"})
"""The same of the look-up of an endpoint's addresses."""


def from_failure(
    failure: Failure, *, server: str | None = None, resolver: str | None = None, advice: str | None = None
) -> TunnelError:
    """The exception for a native failure.

    server: whom it was about, put in front of the message when the message does not name it.
    resolver: the resolver's URL when the failure ended a look-up: whatever the layer below was, it is a ResolverError
    then, with the layer's own code.
    """
    message = failure.message
    subject = resolver or server
    if subject and subject not in message:
        message = f"{subject}: {message}"
    if resolver is not None:
        return _timed(ResolverError, failure.code)(
            message,
            code=failure.code,
            detail=failure.detail,
            advice=advices.OF_RESOLVERS.get(failure.code, advices.OTHER_RESOLVERS) if advice is None else advice,
        )
    if advice is None and failure.layer == "certificate" and "ECH was rejected" in message:
        # It is the public name's certificate then, and the configuration that named it is the first suspect.
        advice = advices.FOREIGN_CONFIGURATION
    kind = _CLASS_OF_CODE.get(failure.code) or _CLASS_OF_LAYER.get(failure.layer, TunnelError)
    kind = _timed(kind, failure.code)
    error: TunnelError
    if kind is ConfigError:
        error = ConfigError(message, code=failure.code, detail=failure.detail, advice=advice)
    else:
        error = kind(message, code=failure.code, layer=failure.layer, detail=failure.detail, advice=advice)
    if isinstance(error, EchError):
        error.retry_configs = failure.retry_configs
    if isinstance(error, WebSocketError):
        error.retry_after = failure.retry_after
    return error


def connect_error(subject: str, error: OSError, limit: float) -> ConnectError:
    """Why connecting to ``subject`` (address:port) failed; limit: the seconds it was given."""
    if isinstance(error, TimeoutError):
        return ConnectTimeout(f"connecting to {subject}: no answer within {limit:.0f} s", code="tcp-timeout")
    code, why = "tcp-unreachable", error.strerror or str(error)
    if isinstance(error, ConnectionRefusedError):
        code, why = "tcp-refused", "refused"
    elif isinstance(error, ConnectionResetError):
        code, why = "tcp-reset", "reset"
    return ConnectError(f"connecting to {subject}: {why}", code=code)


_CLASS_OF_LAYER: dict[str, type[TunnelError]] = {
    "resolver": ResolverError,
    "tcp": ConnectError,
    "tls": TlsError,
    "ech": EchError,
    "certificate": CertificateError,
    "websocket": WebSocketError,
    "token": TokenError,
    "yamux": SessionError,
    "target": TargetError,
}

_TIMEOUTS: dict[type[TunnelError], type[TunnelError]] = {
    ResolverError: ResolverTimeout,
    ConnectError: ConnectTimeout,
    TlsError: TlsTimeout,
    WebSocketError: WebSocketTimeout,
    SessionError: SessionTimeout,
    TargetError: TargetTimeout,
}


def _timed(kind: type[TunnelError], code: str) -> type[TunnelError]:
    """The class for a code of this class's layer: a deadline's own, if that is what the code tells of."""
    return _TIMEOUTS.get(kind, kind) if code.endswith("-timeout") else kind


# Codes whose class is not that of their layer.
_CLASS_OF_CODE: dict[str, type[TunnelError]] = {
    "shutdown": EngineClosed,
    "no-session": SessionError,
    "session-timeout": SessionTimeout,
    "too-many-connections": SessionError,
    "retired": SessionError,
    "closed": SessionError,
}

_LISTEN_REASONS: dict[int, tuple[str, str]] = {
    errno.EADDRINUSE: ("the port is in use", "listen-in-use"),
    errno.EACCES: ("this user may not open that port", "listen-denied"),
    errno.EPERM: ("this user may not open that port", "listen-denied"),
    errno.EADDRNOTAVAIL: ("this machine has no such address", "listen-no-address"),
}


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text or "\r" in text else text
