"""How far away each server is: the round trips that its sessions measured. No clock and no engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from ech_workers._native import SessionSnapshot

__all__ = ["MEASURE_EVERY", "Distances"]

MEASURE_EVERY = 2.0
"""Seconds between measurements of servers that are compared."""


class Distances:
    """Of the servers of one tunnel. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._by_sessions: dict[int, float] = {}
        self._measured_at = -math.inf

    def look(self, sessions: Collection[SessionSnapshot]) -> None:
        """Takes what was measured by now."""
        self._by_sessions = {}
        for session in sessions:
            if session.rtt_ms is not None:
                known = self._by_sessions.get(session.upstream, math.inf)
                self._by_sessions[session.upstream] = min(known, session.rtt_ms)

    def of(self, number: int) -> float | None:
        """Milliseconds; None while nothing was measured."""
        return self._by_sessions.get(number)

    def due(self, sessions: Collection[SessionSnapshot], compared: Collection[int], now: float) -> list[int]:
        """The sessions that are to be measured again. compared: the servers between which a choice is to be made."""
        if not compared or now < self._measured_at + MEASURE_EVERY:
            return []
        self._measured_at = now
        return [session.session for session in sessions if session.upstream in compared and session.unanswered is None]
