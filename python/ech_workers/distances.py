"""How far away each server is: the round trip of the path to it, as its sessions and its dials measured it.

What is measured beside much traffic of the tunnel's own tells of the queue that this makes, so it counts only if it is shorter.
No clock and no engine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from ech_workers._native import SessionSnapshot, Snapshot

__all__ = ["MEASURE_EVERY", "Distances"]

MEASURE_EVERY = 2.0
"""Seconds between measurements of servers that are compared."""


class Distances:
    """Of the servers of one tunnel. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._paths: dict[int, float] = {}
        self._measured_at = -math.inf

    def look(self, snapshot: Snapshot) -> None:
        """Takes what was measured by now."""
        # A connection of simple mode is made anew for each stream, and its dial is all that measures.
        self._paths = {
            upstream.upstream: upstream.connect_ms for upstream in snapshot.upstreams if upstream.connect_ms is not None
        }
        by_sessions: dict[int, float] = {}
        for session in snapshot.sessions:
            if session.path_ms is not None:
                known = by_sessions.get(session.upstream, math.inf)
                by_sessions[session.upstream] = min(known, session.path_ms)
        self._paths |= by_sessions

    def of(self, number: int) -> float | None:
        """Milliseconds; None while nothing was measured."""
        return self._paths.get(number)

    def due(self, sessions: Collection[SessionSnapshot], compared: Collection[int], now: float) -> list[int]:
        """The sessions that are to be measured again. compared: the servers between which a choice is to be made."""
        if not compared or now < self._measured_at + MEASURE_EVERY:
            return []
        self._measured_at = now
        return [session.session for session in sessions if session.upstream in compared and session.unanswered is None]
