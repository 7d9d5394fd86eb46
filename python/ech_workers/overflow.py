"""Sessions beyond the wanted ones, for as long as the server allows no more streams in those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ech_workers.further import Further

if TYPE_CHECKING:
    from collections.abc import Collection

    from ech_workers.timing import Timing

__all__ = ["EXTRA_MAX", "SESSIONS_MAX", "Answer", "Overflow"]

EXTRA_MAX = 2
"""Sessions beyond the wanted ones."""

SESSIONS_MAX = 4
"""Beyond the wanted ones, none is dialled that would make more sessions to one server than this."""

Answer = Literal["dial", "dialling", "wait"]
"""What follows when every session is full: another one is dialled, one is under way already, or new streams wait."""


class Overflow:
    """How many sessions there are to be beyond the wanted ones. Times are monotonic seconds."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.count = 0
        self._look_at = 0.0
        self._further = Further(failed_for=timing.backoff_limit, displaced_for=timing.retry_after_limit)

    def full(self, now: float, *, live: int, wanted: int) -> Answer:
        """Every session has as many streams as the server allows. live: sessions that take new streams, full or not."""
        self._look_at = now + self._timing.extra_idle
        if live < wanted + self.count:
            return "dialling"
        if self.count >= EXTRA_MAX or wanted + self.count >= SESSIONS_MAX or not self._further.may_try(now):
            return "wait"
        self.count += 1
        return "dial"

    def failed(self, now: float) -> None:
        """A session beyond the wanted ones could not be had: the server may allow no more of them either."""
        self.count = max(0, self.count - 1)
        self._further.failed(now)

    def up(self, now: float) -> None:
        """A session came up."""
        if self.count > 0:
            self._further.up(now)

    def lost(self, now: float) -> None:
        """A session was lost. Whether it is needed again is found out when the others are full again."""
        self.count = max(0, self.count - 1)
        self._further.lost(now)

    def may_end(self, now: float) -> bool:
        """Whether it is time to look for sessions that are not used any more."""
        return self.count > 0 and now >= self._look_at

    def end(self, now: float, idle: Collection[int]) -> list[int]:
        """The sessions to be ended, of those without streams; the newest first."""
        ended = sorted(idle, reverse=True)[: self.count]
        self.count -= len(ended)
        self._look_at = now + self._timing.tick
        return ended

    def deadlines(self) -> list[float]:
        """When to look again."""
        return [self._look_at] if self.count > 0 else []
