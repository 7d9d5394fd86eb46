"""Connections that went on to another server because one cannot reach their target."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ech_workers import _native

__all__ = ["Unreached"]

_log = logging.getLogger("ech_workers")

_WORDS = {
    "platform-address": "they are on its platform's own addresses",
    "not-allowed": "its rules forbid them",
    "socket-limit": "it has no socket left",
    "timed-out": "they do not answer it",
    "host-unreachable": "it has no route to them",
    "network-unreachable": "it has no route to them",
}


class Unreached:
    """What one server could not reach. The log says each kind once, without targets: those are for the level debug."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: set[str] = set()
        self.count = 0
        """Connections that went on to another server."""
        self.why: str | None = None
        """Why the last one did."""

    def note(self, event: _native.Unreached) -> None:
        """One more."""
        self.count += 1
        self.why = _WORDS.get(event.kind, "it does not say why")
        if event.kind not in self._told:
            self._told.add(event.kind)
            _log.info(
                "%s cannot reach some targets (%s): these connections go to the next server", self._name, self.why
            )
        _log.debug("%s cannot reach a target, and the next server is asked: %s", self._name, event.reason)
