"""Why one server has no session, or fewer than wanted: kept for whoever asks, and said once each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ech_workers._logging import about
from ech_workers.steps import Settled, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers.ech import Configuration
    from ech_workers.errors import Cause, TunnelError
    from ech_workers.timing import Moment

__all__ = ["Reasons", "origin_of"]

_log = logging.getLogger("ech_workers")

_ORIGINS = {
    "dns": "the HTTPS record of {}",
    "retry": "the server itself",
    "option": "--ech-config",
    "bootstrap": "--ech-bootstrap",
}


def origin_of(used: Configuration) -> str:
    """Where an ECH configuration came from, in words."""
    return _ORIGINS[used.source].format(used.origin)


class Reasons:
    """The present cause, and what the log knows of it."""

    def __init__(self, trace: Callable[[Step], object], server: str) -> None:
        self._trace = trace
        self._server = server
        self.settled: Cause | None = None
        """Why the last attempt failed for good; None while the first one is under way, and when a session was up since."""
        self.cause: Cause | None = None
        self._cause_at = 0.0
        self._told: tuple[str, str] | None = None
        self.is_news = True
        """The next session is worth a line in the log."""

    def age(self, now: Moment) -> float | None:
        """Seconds since the cause was another one."""
        return max(0.0, now.clock - self._cause_at) if self.cause else None

    def note(self, error: TunnelError, now: Moment) -> None:
        """Keeps the cause, and logs it unless it is the one that was logged last."""
        reason = (error.layer, error.code)
        known = self.cause
        if known is None or (known.layer, known.code) != reason:
            self._cause_at = now.clock
        self.cause = error.cause
        self.is_news = True
        extra = about(error, server=self._server)
        if reason == self._told:
            _log.debug("%s", error.line(), extra=extra)
            return
        self._told = reason
        _log.warning("%s", error.line(), extra=extra)
        if error.detail:
            _log.debug("%s", error.detail, extra=extra)

    def settle(self, error: TunnelError, now: Moment) -> None:
        """An attempt has failed, and nothing more is done about it before the next one."""
        if not self.settled == self.cause == error.cause:
            self.note(error, now)
            self.settled = error.cause
            self._trace(Settled(error.cause))

    def over(self, *, forget: bool) -> bool:
        """There is a session: no cause any more. forget: the same cause is to be logged again. True if that is news."""
        is_news, self.is_news = self.is_news, False
        self.cause = self.settled = None
        if forget:
            self.forget()
        return is_news

    def forget(self) -> None:
        """The next cause is logged, whatever it is."""
        self._told = None
