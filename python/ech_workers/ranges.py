"""Many addresses for one server: networks and long lists, tried a few at a time in random order, good ones first.

A CDN serves every customer on all of its addresses, and some of them may be blocked or slow where one is.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FEW", "Ranges"]

FEW = 4
"""This many are in one plan: a dial tries each with a head start."""

ROUNDS = 8
"""This many plans may fail one after the other without a pause."""

REMEMBERED = 16
"""Good ones are kept, the latest first."""

_SEEN_LIMIT = 8192


class Ranges:
    """The addresses of one server, given as addresses and networks."""

    def __init__(
        self,
        given: Sequence[str],
        good: Sequence[str],
        uniform: Callable[[], float],
        keep: Callable[[tuple[str, ...], float], object] = lambda good, wall: None,
    ) -> None:
        """given: addresses and networks in CIDR form. good: those that worked before; any that is not (any more) in what is
        given is left out. uniform: random over [0, 1). keep: called with the good ones when they change, and the time on the
        wall clock."""
        self._networks = [ipaddress.ip_network(text) for text in given]
        self._total = sum(network.num_addresses for network in self._networks)
        self._uniform = uniform
        self._keep = keep
        self._seen: set[str] = set()
        self._good = [address for address in good if self._has(address)]
        self._rounds = 0
        self._current = self._few()

    @staticmethod
    def is_needed(given: Sequence[str]) -> bool:
        """Whether there are more addresses than one plan should have."""
        return len(given) > FEW or any("/" in text for text in given)

    @property
    def current(self) -> tuple[str, ...]:
        """The addresses to dial by now."""
        return self._current

    @property
    def good(self) -> tuple[str, ...]:
        """Those that worked, the latest first."""
        return tuple(self._good)

    def failed(self) -> bool:
        """None of the present ones worked: goes on to others. False after several times, when a pause is due."""
        self._good = [address for address in self._good if address not in self._current]
        self._current = self._few()
        self._rounds += 1
        if self._rounds < ROUNDS:
            return True
        self._rounds = 0
        return False

    def worked(self, address: str, wall: float) -> None:
        """A session is up by this one."""
        self._rounds = 0
        before = self.good
        self._good = [address, *(other for other in self._good if other != address)][:REMEMBERED]
        self._current = (address, *(other for other in self._current if other != address))
        if self.good != before:
            self._keep(self.good, wall)

    def stopped(self, address: str, wall: float) -> None:
        """A session by this one became silent before much had come over it: others are tried, and it is good no more."""
        self._current = tuple(other for other in self._current if other != address)
        if address in self._good:
            self._good.remove(address)
            self._keep(self.good, wall)
        if not self._current:
            self._seen.add(address)
            self._current = self._few()

    def _few(self) -> tuple[str, ...]:
        """The good ones first, then others by chance."""
        few = self._good[:FEW]
        for _ in range(20 * FEW):
            if len(few) >= min(FEW, self._total):
                break
            address = self._any()
            if address not in self._seen and address not in few:
                few.append(address)
                self._seen.add(address)
            if 2 * len(self._seen) >= min(_SEEN_LIMIT, self._total):
                # So that there is always one that chance finds soon.
                self._seen.clear()
        return tuple(few)

    def _any(self) -> str:
        at = int(self._uniform() * self._total)
        for network in self._networks:
            if at < network.num_addresses:
                return str(network[at])
            at -= network.num_addresses
        return str(self._networks[-1][-1])

    def _has(self, address: str) -> bool:
        return any(ipaddress.ip_address(address) in network for network in self._networks)
