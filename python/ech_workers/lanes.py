"""How many sessions to one server are worth having, when nobody has fixed their number.

What is in one TCP connection waits for each packet of it that is lost, so a small request beside a bulk transfer waits for
that one's losses too. So there is one session while nothing much happens, and one more than there are sessions with bulk
transfers: small streams find one without. Where the server is far, the second one is there before a stream has become a bulk
transfer: as soon as one has moved as much as the first flights of a transfer do. No clock and no engine: what happened goes in, a number comes out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ech_workers.further import Further

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["MOST", "Lanes"]

MOST = 4
"""TLS connections to one server at a time: those that are dialled and those that end with their last stream count too."""

QUIET = 30.0
"""Seconds for which fewer sessions must have been enough before one is closed."""

DISPLACED_FOR, FAILED_FOR = 3600.0, 60.0
"""Seconds without another try after a further session took the place of another one, and after none could be had."""


class Lanes:
    """The wanted number of sessions. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._bulk: set[int] = set()
        self._growing: set[int] = set()
        self._further = Further(failed_for=FAILED_FOR, displaced_for=DISPLACED_FOR)
        self.wanted = 1
        self.look_at = math.inf
        """When it is time to see whether one can be closed; never while all are needed."""

    def bulk(self, session: int, streams: int, now: float, *, growing: bool = False) -> None:
        """A session has so many bulk transfers from now on. growing: it has a stream that may become one, and to dial takes long."""
        (self._bulk.add if streams else self._bulk.discard)(session)
        (self._growing.add if growing else self._growing.discard)(session)
        self._count(now)

    def up(self, now: float) -> None:
        """A session came up."""
        if self.wanted > 1:
            self._further.up(now)

    def lost(self, now: float) -> None:
        """A session was lost."""
        if self._further.lost(now):
            self._keep_one()

    def failed(self, now: float) -> None:
        """A further session could not be had."""
        self._further.failed(now)
        self._keep_one()

    def _keep_one(self) -> None:
        self.wanted = 1
        self.look_at = math.inf

    def keep(self, live: Collection[int], now: float) -> None:
        """These are the sessions that take new streams."""
        if not self._bulk | self._growing <= set(live):
            self._bulk.intersection_update(live)
            self._growing.intersection_update(live)
            self._count(now)

    def shrink(self, streams: Mapping[int, int], now: float, *, extra: int = 0) -> list[int]:
        """The sessions to be closed, of those that take new streams, each with how many it has: idle ones, the newest first,
        as far as fewer are enough. extra: how many are kept for another reason."""
        surplus = len(streams) - extra - self._enough(now)
        idle = sorted((session for session, count in streams.items() if not count), reverse=True)
        closed = idle[: max(0, surplus)]
        self.wanted = max(self._enough(now), len(streams) - extra - len(closed))
        self.look_at = math.inf
        self._count(now)
        return closed

    def _enough(self, now: float) -> int:
        if not self._further.may_try(now):
            return 1
        return max(min(MOST, 1 + len(self._bulk)), 2 if self._growing else 1)

    def _count(self, now: float) -> None:
        enough = self._enough(now)
        self.wanted = max(self.wanted, enough)
        self.look_at = math.inf if enough >= self.wanted else min(self.look_at, now + QUIET)
