"""IPv4 addresses from a network that has IPv6 alone: through its translator (NAT64), whose prefix is found by RFC 7050.

Look-ups over HTTPS go around the network's own resolver, and with it around DNS64, which would give names such addresses. So
the network's resolver is asked in plain DNS, but for one name alone, which says nothing about anybody: ``ipv4only.arpa``. It
is asked only where there is a route for IPv6 and none for IPv4.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from ech_workers import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Nat64", "Translation", "embed", "prefixes_of"]

_log = logging.getLogger("ech_workers")

# RFC 7050 section 8: the name, and the addresses that it has in IPv4.
_NAME = "ipv4only.arpa"
_WELL_KNOWN = frozenset({b"\xc0\x00\x00\xaa", b"\xc0\x00\x00\xab"})

# RFC 6052 section 2.2: where the IPv4 address lies behind a prefix of this length, in bytes; the byte at 8 is zero.
_PLACES = {
    96: (12, 13, 14, 15),
    64: (9, 10, 11, 12),
    56: (7, 9, 10, 11),
    48: (6, 7, 9, 10),
    40: (5, 6, 7, 9),
    32: (4, 5, 6, 7),
}

# Addresses that stand for "somewhere in the Internet" when routes are looked at; nothing is sent there (RFC 5737, RFC 3849).
_SOMEWHERE_4, _SOMEWHERE_6 = "192.0.2.1", "2001:db8::1"

LOOK_UP_TIMEOUT = 3.0
"""Seconds that the network's resolver has to answer."""


def prefixes_of(addresses: Iterable[str]) -> tuple[ipaddress.IPv6Network, ...]:
    """The translator's prefixes, from what the network's resolver answers for the name (RFC 7050 section 3)."""
    found: dict[ipaddress.IPv6Network, None] = {}
    for text in addresses:
        packed = ipaddress.IPv6Address(text).packed
        for length, places in _PLACES.items():
            if bytes(packed[place] for place in places) in _WELL_KNOWN and (length == 96 or packed[8] == 0):
                found[ipaddress.IPv6Network((packed, length), strict=False)] = None
                break
    return tuple(found)


def embed(prefix: ipaddress.IPv6Network, address: str) -> str:
    """The address by which the translator reaches an IPv4 address (RFC 6052 section 2.2)."""
    made = bytearray(prefix.network_address.packed)
    for place, byte in zip(_PLACES[prefix.prefixlen], ipaddress.IPv4Address(address).packed, strict=True):
        made[place] = byte
    return str(ipaddress.IPv6Address(bytes(made)))


class Translation:
    """How addresses are reached from here: as they are, or through a translator. For any thread."""

    def __init__(self) -> None:
        self._prefix: ipaddress.IPv6Network | None = None

    @property
    def prefix(self) -> ipaddress.IPv6Network | None:
        """The translator's; None without one."""
        return self._prefix

    def use(self, prefix: ipaddress.IPv6Network | None) -> None:
        """From now on through this translator, or none."""
        self._prefix = prefix

    def reach(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """The addresses to connect to for these."""
        prefix = self._prefix
        if prefix is None:
            return addresses
        return tuple(embed(prefix, address) if _is_away(address) else address for address in addresses)

    def original(self, address: str) -> str:
        """The address that an address to connect to stands for."""
        prefix = self._prefix
        if prefix is None or ":" not in address or ipaddress.IPv6Address(address) not in prefix:
            return address
        packed = ipaddress.IPv6Address(address).packed
        return str(ipaddress.IPv4Address(bytes(packed[place] for place in _PLACES[prefix.prefixlen])))


def _is_away(address: str) -> bool:
    """Whether this is an IPv4 address of another machine."""
    return ":" not in address and not ipaddress.IPv4Address(address).is_loopback


class Nat64:
    """Finds the translator of the network that the machine is in."""

    def __init__(self, translation: Translation, changed: Callable[[], object]) -> None:
        """changed: called in another thread when addresses are reached in another way from now on."""
        self._translation = translation
        self._changed = changed
        self._lock = waiting.lock()
        self._thread: waiting.Thread | None = None
        self._is_asking = False
        self._is_stale = False
        """The network has changed since the question was put."""

    def look(self) -> None:
        """Looks at the routes, and asks for the prefix where that is needed. Does not wait for the answer."""
        if _has_route(socket.AF_INET, _SOMEWHERE_4) or not _has_route(socket.AF_INET6, _SOMEWHERE_6):
            self._translation.use(None)
            return
        with self._lock:
            self._is_stale = True
            if self._is_asking:
                return
            self._is_asking = True
        self._join()
        self._thread = waiting.Thread(self._run, "ech-workers-nat64")

    def wait(self) -> None:
        """Waits for the answer to a question that has been put, as long as the resolver has."""
        self._join()

    def close(self) -> None:
        """Ends the search, within the time that the resolver has. May be called twice."""
        with self._lock:
            self._is_stale = False
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while self._goes_on():
            found = _ask()
            if found != self._translation.prefix:
                self._translation.use(found)
                if found is not None:
                    _log.info(
                        "this network has IPv6 alone: IPv4 addresses are reached through its translator, %s", found
                    )
                self._changed()

    def _goes_on(self) -> bool:
        with self._lock:
            self._is_asking, self._is_stale = self._is_stale, False
            return self._is_asking


def _has_route(family: socket.AddressFamily, address: str) -> bool:
    try:
        with waiting.original("socket", "socket")(family, socket.SOCK_DGRAM) as probe:
            # Nothing is sent: it is only looked up which way it would go.
            probe.connect((address, 9))
    except OSError:
        return False
    return True


def _ask() -> ipaddress.IPv6Network | None:
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.Resolver().resolve(f"{_NAME}.", "AAAA", lifetime=LOOK_UP_TIMEOUT)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        _log.debug("no translator for IPv4 was found: %s", error)
        return None
    return next(iter(prefixes_of(record.address for record in answer)), None)
