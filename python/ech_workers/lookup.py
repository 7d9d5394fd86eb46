"""One kind of record of one name: when to look for it, and how the last look-up went."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ech_workers._logging import about

if TYPE_CHECKING:
    from ech_workers.errors import TunnelError

__all__ = ["LookUp"]

_log = logging.getLogger("ech_workers")


class LookUp:
    """The state of a repeated look-up. Times are monotonic seconds."""

    def __init__(self, due: float) -> None:
        self.due = due
        self.running = False
        self.force = False
        """Look even though what the cache has is fresh."""
        self.failures = 0
        self.error: TunnelError | None = None
        self.asked_at: float | None = None
        self._mentioned: tuple[str, str] | None = None

    def is_due(self, now: float) -> bool:
        return not self.running and now >= self.due

    def begin(self, now: float, wait: float) -> bool:
        """True if the look-up is to start; otherwise it is due when ``wait`` has passed."""
        if wait > 0 and not self.force:
            self.due = now + wait
            return False
        self.force = False
        self.running = True
        self.asked_at = now
        return True

    def demand(self, now: float) -> None:
        """It is to start at the next opportunity, whatever the cache has."""
        self.due, self.force = now, True

    def was_asked_since(self, moment: float) -> bool:
        return self.asked_at is not None and self.asked_at >= moment

    def succeeded(self, due: float) -> None:
        self.running, self.failures, self.error, self.due, self._mentioned = False, 0, None, due, None

    def failed(self, error: TunnelError, now: float, pause: float) -> None:
        self.running, self.error, self.due = False, error, now + pause
        self.failures += 1

    def mention(self, line: str) -> None:
        """Logs why what is known could not be refreshed, once per reason."""
        if self.error is not None and (self.error.layer, self.error.code) != self._mentioned:
            self._mentioned = (self.error.layer, self.error.code)
            _log.warning("%s", line, extra=about(self.error))
