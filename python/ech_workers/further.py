"""When one more session to a server may be tried, beside those that serve. Times are monotonic seconds."""

from __future__ import annotations

import math

__all__ = ["Further"]

DISPLACED_WITHIN = 5.0
"""A session that is lost so soon after a further one came up was ended for that: a server that has no more places ends a
client's oldest session, with all its streams, for its next one. In seconds."""


class Further:
    """What the last attempts have shown."""

    def __init__(self, *, failed_for: float, displaced_for: float) -> None:
        """Seconds without another try: after one could not be had, and after one took the place of another."""
        self._failed_for = failed_for
        self._displaced_for = displaced_for
        self._up_at = self._not_before = -math.inf

    def may_try(self, now: float) -> bool:
        return now >= self._not_before

    def up(self, now: float) -> None:
        """A further session came up."""
        self._up_at = now

    def failed(self, now: float) -> None:
        """None could be had: the server may allow no more."""
        self._not_before = now + self._failed_for

    def lost(self, now: float) -> bool:
        """A session was lost. True if it was ended for a further one."""
        displaced = now - self._up_at < DISPLACED_WITHIN
        if displaced:
            self._not_before = now + self._displaced_for
        return displaced
