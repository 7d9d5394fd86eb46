"""JA3 and JA4 of a ClientHello, from the bytes of its record: what an observer on the way would note down.

JA3 is https://github.com/salesforce/ja3, JA4 https://github.com/FoxIO-LLC/ja4 (technical_details/JA4.md). Values reserved
by RFC 8701 are left out, as both demand; this client sends none.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import socket

__all__ = ["ClientHello", "first_record"]

_SERVER_NAME = 0
_GROUPS = 10
_POINT_FORMATS = 11
_SIGNATURE_ALGORITHMS = 13
_ALPN = 16
_SUPPORTED_VERSIONS = 43

_VERSIONS = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10"}


class ClientHello(msgspec.Struct, frozen=True):
    """The fields of a ClientHello (RFC 8446 section 4.1.2) that fingerprints are made of, in the order on the wire."""

    version: int
    ciphers: tuple[int, ...]
    extensions: tuple[int, ...]
    groups: tuple[int, ...]
    point_formats: tuple[int, ...]
    signature_algorithms: tuple[int, ...]
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]

    @classmethod
    def parse(cls, records: bytes) -> ClientHello:
        """Reads one or more TLS records that carry the whole ClientHello. Raises ValueError."""
        message = b""
        outer = _Reader(records)
        while outer.left and (len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big")):
            if outer.number(1) != 22:
                raise ValueError("no handshake record")
            outer.number(2)
            message += outer.vector(2)
        reader = _Reader(message)
        if reader.number(1) != 1:
            raise ValueError("no ClientHello")
        reader = _Reader(reader.vector(3))
        version = reader.number(2)
        reader.take(32)
        reader.vector(1)
        ciphers = _numbers(reader.vector(2), 2)
        reader.vector(1)
        bodies: dict[int, bytes] = {}
        listing = _Reader(reader.vector(2) if reader.left else b"")
        while listing.left:
            kind = listing.number(2)
            bodies[kind] = listing.vector(2)
        alpn = _Reader(_inside(bodies.get(_ALPN), 2))
        protocols: list[bytes] = []
        while alpn.left:
            protocols.append(alpn.vector(1))
        return cls(
            version=version,
            ciphers=_real(ciphers),
            extensions=_real(tuple(bodies)),
            groups=_real(_numbers(_inside(bodies.get(_GROUPS), 2), 2)),
            point_formats=_numbers(_inside(bodies.get(_POINT_FORMATS), 1), 1),
            signature_algorithms=_real(_numbers(_inside(bodies.get(_SIGNATURE_ALGORITHMS), 2), 2)),
            alpn=tuple(protocols),
            versions=_real(_numbers(_inside(bodies.get(_SUPPORTED_VERSIONS), 1), 2)),
        )

    @property
    def ja3_text(self) -> str:
        """What JA3 hashes."""
        lists = (self.ciphers, self.extensions, self.groups, self.point_formats)
        return ",".join([str(self.version), *("-".join(map(str, values)) for values in lists)])

    @property
    def ja3(self) -> str:
        return hashlib.md5(self.ja3_text.encode(), usedforsecurity=False).hexdigest()

    @property
    def ja4(self) -> str:
        version = _VERSIONS.get(max(self.versions, default=self.version), "00")
        name = "d" if _SERVER_NAME in self.extensions else "i"
        first = self.alpn[0] if self.alpn else b""
        ends = first[:1] + first[-1:]
        alpn = "00" if not ends else ends.decode() if ends.isalnum() else first.hex()[0] + first.hex()[-1]
        head = f"t{version}{name}{min(len(self.ciphers), 99):02}{min(len(self.extensions), 99):02}{alpn}"
        ciphers = ",".join(sorted(f"{cipher:04x}" for cipher in self.ciphers))
        kinds = ",".join(sorted(f"{kind:04x}" for kind in self.extensions if kind not in (_SERVER_NAME, _ALPN)))
        algorithms = ",".join(f"{algorithm:04x}" for algorithm in self.signature_algorithms)
        return f"{head}_{_short(ciphers)}_{_short(f'{kinds}_{algorithms}' if algorithms else kinds)}"


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if self.left < count:
            raise ValueError(f"cut at byte {self._at}")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))


def _inside(body: bytes | None, size: int) -> bytes:
    return _Reader(body).vector(size) if body else b""


def _numbers(data: bytes, size: int) -> tuple[int, ...]:
    if len(data) % size:
        raise ValueError("a list ends in the middle of an entry")
    return tuple(int.from_bytes(data[i : i + size], "big") for i in range(0, len(data), size))


def _real(values: tuple[int, ...]) -> tuple[int, ...]:
    """Without the values that RFC 8701 reserves: 0x0a0a, 0x1a1a, ..., 0xfafa."""
    return tuple(value for value in values if not (value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else "0" * 12


def first_record(peer: socket.socket) -> bytes:
    """The first TLS record that a peer sends. Raises ValueError when it is cut short, and OSError."""
    data = b""
    while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
        more = peer.recv(65536)
        if not more:
            raise ValueError("the hello was cut")
        data += more
    return data
