"""Whether the connections to one server stop after the same few kilobytes, as some networks make those to certain hosts do.

Such a server can be connected to, and answers for a while, so that nothing but what gets through tells. Judged from the
traffic that there is: no clock and no engine of its own. Times are monotonic seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ech_workers._native import SessionSnapshot

__all__ = ["PASSED", "SILENT", "Stalls", "amount"]

SILENT = frozenset({"yamux-ping-timeout", "tcp-timeout"})
"""How a session ends that nothing comes over any more, while nothing cuts it."""

PASSED = 64 << 10
"""Bytes of payload that came over a session: what passes so many is not cut."""

ALIKE = 6 << 10
"""Bytes by which two such ends may differ."""

DEMOTED_FIRST, DEMOTED_LIMIT = 600.0, 3600.0
"""Seconds for which such a server is used last; doubled each time that it shows the same afterwards."""


class Stalls:
    """What was seen of one server's sessions."""

    def __init__(self) -> None:
        self._silent: dict[int, int] = {}
        self._last: int | None = None
        self._times = 0
        self._until = -math.inf
        self.stops_after: int | None = None
        """Bytes of payload after which its connections stop; None while nothing says that they do. What is cut in the middle of
        a TLS record of 16 KB has not come, so this is often 0."""

    def look(self, sessions: Iterable[SessionSnapshot], silent: Collection[int], now: float) -> bool:
        """Takes the server's sessions and those that do not answer. True if the server is demoted by what they show.

        A session that answers again has not stopped: what counts is one that was silent until it was given up."""
        present = {session.session: session.bytes_down for session in sessions}
        if any(received >= PASSED for received in present.values()):
            self._last, self._times, self._until, self.stops_after = None, 0, -math.inf, None
        ended = [received for number, received in self._silent.items() if number not in present]
        self._silent = {
            number: received for number, received in present.items() if number in silent and received < PASSED
        }
        return any(self._stops(received, now) for received in ended)

    def _stops(self, received: int, now: float) -> bool:
        last, self._last = self._last, received
        if last is None or abs(received - last) > ALIKE:
            return False
        self.stops_after = received
        self._until = now + min(DEMOTED_LIMIT, DEMOTED_FIRST * 2.0 ** min(self._times, 16))
        self._times += 1
        return True

    def is_demoted(self, now: float) -> bool:
        """Whether the server is to be used last."""
        return now < self._until

    def left(self, now: float) -> float:
        """Seconds for which it still is."""
        return max(0.0, self._until - now)


def amount(received: int) -> str:
    """So many bytes in words."""
    return f"{received / 1000:.0f} KB" if received >= 1000 else "the first few KB"
