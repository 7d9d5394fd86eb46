"""Many addresses for one server: networks and long lists, tried a few at a time in random order, good ones first.

A CDN serves every customer on all of its addresses, and some of them may be blocked or slow where one is.
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

from ech_workers.good_addresses import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["FEW", "Ranges"]

FEW = 4
"""This many are in one plan: a dial tries each with a head start."""

ROUNDS = 8
"""This many plans may fail one after the other without a pause."""

REMEMBERED = 16
"""So many good ones are kept."""

KEPT_ANEW = 86400.0
"""Seconds after which it is kept anew when a good one last worked, though nothing else has changed."""

_SEEN_LIMIT = 8192


class Ranges:
    """The addresses of one server, given as addresses and networks."""

    def __init__(
        self,
        given: Sequence[str],
        good: Mapping[str, Score],
        uniform: Callable[[], float],
        keep: Callable[[Mapping[str, Score], float], object] = lambda good, wall: None,
    ) -> None:
        """given: addresses and networks in CIDR form. good: those that worked before, the best first; any that is not (any more)
        in what is given is left out. uniform: random over [0, 1). keep: called with the good ones when they change, and the time on
        the wall clock."""
        self._networks = [ipaddress.ip_network(text) for text in given]
        self._total = sum(network.num_addresses for network in self._networks)
        self._uniform = uniform
        self._keep = keep
        self._seen: set[str] = set()
        self._good = {address: score for address, score in good.items() if self._has(address)}
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
        """Those that worked: the one with the best score first, and behind those with a score the latest first."""
        return tuple(self._good)

    def is_unproved(self, address: str) -> bool:
        """Whether it is not known how long 64 KiB take by an address."""
        score = self._good.get(address)
        return score is None or score.ms is None

    def failed(self) -> bool:
        """None of the present ones worked: goes on to others. False after several times, when a pause is due."""
        self._good = {address: score for address, score in self._good.items() if address not in self._current}
        self._current = self._few()
        self._rounds += 1
        if self._rounds < ROUNDS:
            return True
        self._rounds = 0
        return False

    def worked(self, address: str, wall: float, *, is_proof: bool = True) -> None:
        """A session is up by this one. is_proof: it counts as good by that; else ``scored`` tells, or has told."""
        self._rounds = 0
        self._current = (address, *(other for other in self._current if other != address))
        known = self._good.get(address)
        if is_proof or known is not None:
            self._remember(address, None if known is None else known.ms, wall)

    def scored(self, address: str, ms: float, wall: float) -> None:
        """64 KiB got through by this one, in so many milliseconds."""
        if self._has(address):
            self._remember(address, ms, wall)

    def stopped(self, address: str, wall: float) -> None:
        """A session by this one became silent before much had come over it: others are tried, and it is good no more."""
        self._current = tuple(other for other in self._current if other != address)
        if address in self._good:
            del self._good[address]
            self._keep(self._good, wall)
        if not self._current:
            self._seen.add(address)
            self._current = self._few()

    def _remember(self, address: str, ms: float | None, wall: float) -> None:
        others = ((other, score) for other, score in self._good.items() if other != address)
        ranked = sorted([(address, Score(ms, wall)), *others], key=_rank)
        known = self._good.get(address)
        is_kept = known is not None and known.ms == ms and wall - known.at < KEPT_ANEW
        if not is_kept or [other for other, _ in ranked] != list(self._good):
            self._good = dict(ranked[:REMEMBERED])
            self._keep(self._good, wall)

    def _few(self) -> tuple[str, ...]:
        """The good ones first, then others by chance."""
        few = list(self._good)[:FEW]
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


def _rank(item: tuple[str, Score]) -> float:
    ms = item[1].ms
    return math.inf if ms is None else ms
