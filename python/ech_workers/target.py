"""What ``check`` fetches through the tunnel, and the rate at which it comes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from ech_workers.config import authority
from ech_workers.errors import ConfigError, TargetError, TargetTimeout
from ech_workers.names import ascii_name

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["DEFAULT_TARGET", "STREAM_TIMEOUT", "FirstByte", "Sample", "Target"]

DEFAULT_TARGET = "http://example.com/"

STREAM_TIMEOUT = 15.0
"""Seconds; for the opening and for each wait for data."""

SAMPLE_BYTES, SAMPLE_SECONDS = 16 << 20, 5.0
"""Whichever comes first ends the throughput sample."""


class FirstByte(NamedTuple):
    """The answer begins."""

    ms: float
    status: str
    """The status line."""


class Sample(NamedTuple):
    """What came in all, and in how many seconds since it was asked for."""

    received: int
    seconds: float
    rate: float | None
    """Bytes a second; None when too few came to tell."""


class Target:
    """What the stream at the end is opened to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("http", "https") or not parts.hostname or (port is None and ":" in parts.netloc[-6:]):
            raise ConfigError(f"{url!r} is no http or https URL", option="--target", advice=f"like {DEFAULT_TARGET}")
        self.tls = parts.scheme == "https"
        try:
            self.host = ascii_name(parts.hostname)
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL: {error}", option="--target") from None
        self.port = port or (443 if self.tls else 80)
        self._authority = authority(self.host, self.port, 443 if self.tls else 80)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not f"{self._authority}{self._path}".isascii() or any(c.isspace() for c in self._path):
            raise ConfigError(f"{url!r} is no URL", option="--target", advice="write it as browsers send it")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def request(self) -> bytes:
        lines = (f"GET {self._path} HTTP/1.1", f"Host: {self._authority}", "Accept: */*", "Connection: close", "", "")
        return "\r\n".join(lines).encode("ascii")

    def fetch(self, raw: socket.socket, ca_pem: bytes | None) -> Iterator[FirstByte | Sample]:
        """Asks over a stream that is connected to the target. Raises TargetError, OSError."""
        started = time.monotonic()
        raw.settimeout(STREAM_TIMEOUT)
        received = 0
        try:
            with self._secured(raw, ca_pem) as stream:
                asked = time.monotonic()
                stream.sendall(self.request())
                first = stream.recv(65536)
                if not first:
                    raise TargetError(f"{self}: the stream ended before an answer came", code="target-failed")
                begun = time.monotonic()
                received = len(first)
                yield FirstByte((begun - started) * 1000, first.split(b"\r\n", 1)[0][:60].decode("ascii", "replace"))
                last = begun
                while received < SAMPLE_BYTES and last - begun < SAMPLE_SECONDS:
                    data = stream.recv(262144)
                    if not data:
                        break
                    last = time.monotonic()
                    received += len(data)
        except TimeoutError:
            if received:
                message = f"{self}: it stops after {received / 1000:.0f} KB: nothing came for {STREAM_TIMEOUT:.0f} s"
                raise TargetTimeout(message, code="target-stalled") from None
            message = f"{self}: no answer within {STREAM_TIMEOUT:.0f} s"
            raise TargetTimeout(message, code="target-timeout") from None
        # From the request on: what comes with the first look was on its way before it.
        seconds = max(last - asked, 1e-6)
        yield Sample(received, seconds, received / seconds if received >= _SAMPLE_LEAST else None)

    def _secured(self, raw: socket.socket, ca_pem: bytes | None) -> contextlib.AbstractContextManager[socket.socket]:
        if not self.tls:
            return contextlib.nullcontext(raw)
        import ssl

        context = ssl.create_default_context()
        if ca_pem is not None:
            context.load_verify_locations(cadata=ca_pem.decode("ascii", "ignore"))
        return context.wrap_socket(raw, server_hostname=self.host)


# Below this the figure says more about the first round trips than about the rate.
_SAMPLE_LEAST = 256 << 10
