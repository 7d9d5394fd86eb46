"""One connection to the status port: a request, then its answer, or a WebSocket that only we speak on."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import selectors
import socket
import time
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "not_allowed", "response"]

REQUEST_TIMEOUT = 10.0
"""Seconds from the connection to the end of its request."""

STALL_TIMEOUT = 10.0
"""Seconds after which a watcher that takes nothing is let go; until then it misses frames."""

LINGER = 2.0
"""Seconds for the other side to take an answer and to close."""

BACKLOG = 1 << 18
"""Bytes that may wait for one connection; a frame has a few thousand."""

# The library's own lines, among them one for each connection, are not this program's.
_silent = logging.getLogger("ech_workers.status.websockets")
_silent.disabled = True


class Connection:
    """A connection that was accepted."""

    def __init__(
        self,
        accepted: socket.socket,
        selector: selectors.BaseSelector,
        all_connections: set[Connection],
        answer: Callable[[Connection, Request], Response],
    ) -> None:
        # The feed takes no messages; whoever sends one is let go.
        self.protocol = ServerProtocol(max_size=1024, logger=_silent)
        self.first = b""
        """The frame that a new watcher gets at once."""
        self.deadline: float | None = time.monotonic() + REQUEST_TIMEOUT
        self._socket = accepted
        self._selector = selector
        self._all = all_connections
        self._answer = answer
        self.reached = accepted.getsockname()[0].removeprefix("::ffff:")
        """The address of this machine that it came by."""
        self.is_local = ipaddress.ip_address(self.reached).is_loopback
        """Whether that is a loopback address."""
        self._head = b""
        self._is_begun = False
        self._is_head = False
        self._answered = False
        self._out = bytearray()
        self._ends = False
        self._took_at = 0.0
        all_connections.add(self)
        selector.register(accepted, selectors.EVENT_READ, self)

    @property
    def is_watching(self) -> bool:
        return self.protocol.state is State.OPEN

    def serve(self) -> None:
        """The socket is readable, or writable."""
        if not self._receive():
            self.close()
            return
        self._flush()

    def show(self, frame: bytes) -> None:
        """Sends a frame, unless the last one is still not taken."""
        if self._out:
            if time.monotonic() - self._took_at > STALL_TIMEOUT:
                self.close()
            return
        self.protocol.send_text(frame)
        self._flush()

    def say_goodbye(self) -> None:
        if self.is_watching and not self._out:
            self.protocol.send_close(CloseCode.GOING_AWAY)
            self._flush()

    def close(self) -> None:
        if self in self._all:
            self._all.remove(self)
            self._selector.unregister(self._socket)
            self._socket.close()

    def _receive(self) -> bool:
        """False at the end of the connection."""
        try:
            data = self._socket.recv(1 << 14)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        if not self._is_begun:
            data = self._head + data
            if len(data) < len(_HEAD) and _HEAD.startswith(data):
                # Not enough to say which method it is.
                self._head = data
                return True
            self._is_begun = True
            self._is_head = data.startswith(_HEAD)
            if self._is_head:
                # The library knows GET alone, and the two answers differ by their body alone.
                data = b"GET " + data.removeprefix(_HEAD)
            self._head = data[:16]
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Request):
                self._respond(self._answer(self, event))
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY) and self.is_watching:
                self.protocol.fail(CloseCode.POLICY_VIOLATION, "only the proxy speaks here")
        if not self._answered and self.protocol.handshake_exc is not None:
            self._refuse_unreadable()
        return True

    def _respond(self, response: Response) -> None:
        self._answered = True
        for name, value in _HEADERS:
            if name not in response.headers:
                response.headers[name] = value
        if self._is_head and not self.is_watching:
            # Its length is that of the body which GET would have had (RFC 9110 section 9.3.2).
            response = dataclasses.replace(response, body=b"")
        self.protocol.send_response(response)
        self.deadline = None
        if self.is_watching:
            self._took_at = time.monotonic()
            self.protocol.send_text(self.first)

    def _refuse_unreadable(self) -> None:
        """What the library cannot read, a body for example, it mostly has no answer to, and ends the connection."""
        self._answered, self._ends = True, True
        self.deadline = None
        self._out += b"".join(self.protocol.data_to_send())
        if not self._out:
            answer = (
                self.protocol.reject(400, "that is no request for this port\n")
                if self._head.startswith(b"GET ")
                else not_allowed(self.protocol)
            )
            self._out += answer.serialize()

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self._out += data
            else:
                # How the protocol says that it has no more to send.
                self._ends = True
        if len(self._out) > BACKLOG:
            self.close()
            return
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
                self._took_at = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._ends and not self._out:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        if self._answered and not self.is_watching and self.deadline is None:
            # Answered, or a WebSocket that is closing: the other side has its turn.
            self.deadline = time.monotonic() + LINGER
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self._selector.get_key(self._socket).events != events:
            self._selector.modify(self._socket, events, self)


_HEAD = b"HEAD "

# For every answer: nothing here is to be kept, shown inside another site's page, or taken for a script by one.
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
)


def response(status: int, reason: str, kind: str, body: bytes, *headers: tuple[str, str]) -> Response:
    fields = (("Connection", "close"), ("Content-Length", str(len(body))), ("Content-Type", kind), *headers)
    return Response(status, reason, Headers(fields), body)


def not_allowed(protocol: ServerProtocol) -> Response:
    refusal = protocol.reject(405, "only GET and HEAD are answered here\n")
    refusal.headers["Allow"] = "GET, HEAD"
    return refusal
