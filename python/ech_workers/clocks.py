"""Both clocks, and what their disagreement tells: that the machine slept, or that the process was stopped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ech_workers.timing import Moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers.timing import Timing

__all__ = ["Clocks"]

_log = logging.getLogger("ech_workers")


class Clocks:
    """The monotonic clock and the wall clock."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float], timing: Timing) -> None:
        self._clock = clock
        self._wall = wall
        self._timing = timing
        self._offset = wall() - clock()
        self._last_look = clock()

    def now(self) -> Moment:
        return Moment(self._clock(), self._wall())

    def missing(self, now: Moment) -> float:
        """The seconds that went by without this process since the last look; 0 when there are none to speak of.

        To be called at least once a tick: a longer pause means that the process was stopped.
        """
        offset = now.wall - now.clock
        moved = offset - self._offset
        stalled = now.clock - self._last_look - self._timing.tick
        self._offset, self._last_look = offset, now.clock
        if moved < -self._timing.clock_jump:
            _log.info("the clock was set back by %.0f s", -moved)
            return 0.0
        gap = max(moved, stalled)
        return gap if gap > self._timing.clock_jump else 0.0
