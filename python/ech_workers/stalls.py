"""Whether the connections to one server stop after the same few kilobytes, as some networks make those to certain hosts do.

Such a server can be connected to, and answers for a while, so that nothing but what gets through tells: the traffic that there
is, and probes (``probes.py``) where the server takes them. No clock and no engine here. Times are monotonic seconds.
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
        self._told: set[int] = set()
        """Sessions whose end has counted already."""
        self._last: int | None = None
        self._times = 0
        self.until = -math.inf
        """For so long it is used last, whatever it shows."""
        self.has_to_prove = False
        """After that, too, until something gets through: it can be probed."""
        self.stops_after: int | None = None
        """Bytes of payload after which its connections stop; None while nothing says that they do. What is cut in the middle of
        a TLS record of 16 KB has not come, so this is often 0."""

    def look(self, sessions: Iterable[SessionSnapshot], silent: Collection[int], now: float) -> bool:
        """Takes the server's sessions and those that do not answer. True if the server is demoted by what they show.

        A session that answers again has not stopped: what counts is one that was silent until it was given up."""
        present = {session.session: session.bytes_down for session in sessions}
        if any(received >= PASSED for received in present.values()):
            self.passed()
        self._told &= present.keys()
        ended = [received for number, received in self._silent.items() if number not in present]
        self._silent = {
            number: received
            for number, received in present.items()
            if number in silent and received < PASSED and number not in self._told
        }
        return any(self._stops(received, now) for received in ended)

    def passed(self) -> None:
        """So much came over a connection that it is not cut."""
        self._last, self._times, self.until, self.stops_after = None, 0, -math.inf, None

    def stopped(self, received: int, now: float, session: int | None) -> bool:
        """A probe showed that nothing more comes over a session, or over a connection of its own. True if the server is demoted
        by this."""
        if received >= PASSED:
            return False
        if session is not None:
            self._told.add(session)
            self._silent.pop(session, None)
        return self._stops(received, now)

    def forget(self) -> None:
        """The network is another one."""
        self.passed()
        self._silent.clear()

    @property
    def is_suspect(self) -> bool:
        """Whether a connection has stopped, and nothing has shown since then that others do not."""
        return self._last is not None

    def words(self, name: str, now: float) -> str:
        """What is said of a server that is demoted."""
        return (
            f"connections to {name} stop after {amount(self.stops_after or 0)}: something on the way lets no more through;"
            f" where there is another server, this one is used last for {self.left(now) / 60:.0f} min"
        )

    def _stops(self, received: int, now: float) -> bool:
        last, self._last = self._last, received
        if last is None or abs(received - last) > ALIKE:
            return False
        self.stops_after = received
        self.until = now + min(DEMOTED_LIMIT, DEMOTED_FIRST * 2.0 ** min(self._times, 16))
        self._times += 1
        return True

    def is_demoted(self, now: float) -> bool:
        """Whether the server is to be used last."""
        return now < self.until or (self.has_to_prove and self.stops_after is not None)

    def left(self, now: float) -> float:
        """Seconds for which it still is."""
        return max(0.0, self.until - now)


def amount(received: int) -> str:
    """So many bytes in words."""
    return f"{received / 1000:.0f} KB" if received >= 1000 else "the first few KB"
