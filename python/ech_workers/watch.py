"""Whether sessions still answer, judged from what passes over them.

Where there is another server to go to, a session that takes data and gives nothing back is asked for a sign of life (a ping
of 12 bytes) long before its own limit, and new streams leave a server none of whose sessions answers. The session itself is
left alone: it may only be slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from ech_workers._native import SessionSnapshot

__all__ = ["Watch"]

QUIET = 0.35
"""Seconds without a byte from a server to which something was sent, until it is asked for a sign of life."""

SILENT = 1.2
"""Seconds without a byte from the server after that question, until it counts as silent."""

INTERVAL, IDLE_INTERVAL = 0.4, 0.7
"""Seconds between looks, while streams are open and while none are."""


class Watch:
    """What was seen of the sessions at the last look. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._sent: dict[int, int] = {}
        self._unproved: set[int] = set()
        """Sessions over which something was sent since they were last asked for a sign of life."""
        self.silent: frozenset[int] = frozenset()
        """The sessions that do not answer."""
        self.look_at = 0.0
        """When the next look is due."""

    def look(self, sessions: Collection[SessionSnapshot], now: float) -> set[int]:
        """Takes the present counters, and returns the sessions to be probed."""
        sent = {session.session: session.bytes_up + session.streams_total for session in sessions}
        self._unproved &= sent.keys()
        self.look_at = now + IDLE_INTERVAL
        silent, probes = set(), set()
        for session in sessions:
            number = session.session
            if session.streams:
                self.look_at = now + INTERVAL
            if sent[number] > self._sent.get(number, 0):
                self._unproved.add(number)
            if session.unanswered is not None:
                if session.unanswered >= SILENT:
                    silent.add(number)
            elif number in self._unproved and session.heard_ago >= QUIET:
                # Once after each burst: a session over which nothing more is sent is left alone.
                self._unproved.discard(number)
                probes.add(number)
        self._sent = sent
        self.silent = frozenset(silent)
        return probes
