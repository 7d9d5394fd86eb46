"""Which of a server's endpoints, and which entry of an endpoint's ECHConfigList, is tried next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ech_workers.ech import Configuration, without_first

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Turns"]


class Turns:
    """How far the choice has moved on from what was published first."""

    def __init__(self) -> None:
        self._endpoint = 0
        # How often in this attempt.
        self._count = 0
        # Entries at the front of the list that are some other server's.
        self._dropped = 0
        self._published: bytes | None = None

    def apply(self, known: Configuration) -> Configuration:
        """What is to be used of what is known."""
        turned = known.turned(self._endpoint)
        if turned.configs != self._published:
            self._published, self._dropped = turned.configs, 0
        configs = turned.configs
        for _ in range(self._dropped):
            configs = without_first(configs) or configs
        return turned if configs is turned.configs else msgspec.structs.replace(turned, configs=configs)

    def whole(self, used: Configuration) -> Configuration:
        """``used`` with the list as it was published."""
        if self._published is not None and used.configs in _tails(self._published):
            return msgspec.structs.replace(used, configs=self._published)
        return used

    def next_endpoint(self, known: Configuration, failed: Configuration) -> bool:
        """Goes on to the endpoint of the next priority; False when each has had its turn in this attempt (RFC 9460
        section 3)."""
        if not known.others:
            return False
        if (known.configs, known.target, known.port) != (failed.configs, failed.target, failed.port):
            # Another dial failed before this one.
            return True
        if self._count == len(known.others):
            return False
        self._endpoint += 1
        self._count += 1
        return True

    def next_entry(self, known: Configuration, failed: Configuration) -> bool:
        """Goes on to the next entry of the list, whose first one the server does not have; False when there is none."""
        if known.configs != failed.configs:
            return True
        if without_first(known.configs) is None:
            # Round again, after a pause.
            self._dropped = 0
            return False
        self._dropped += 1
        return True

    def first_again(self) -> None:
        """Something new was published, or handed over: its first endpoint is tried first."""
        self._endpoint = 0

    def attempt_over(self) -> None:
        """A session is up, or a pause follows: the next failure may go round all endpoints again."""
        self._count = 0


def _tails(configs: bytes) -> Sequence[bytes]:
    found = [configs]
    while (shorter := without_first(found[-1])) is not None:
        found.append(shorter)
    return found
