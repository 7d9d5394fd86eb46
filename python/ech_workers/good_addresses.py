"""The addresses of networks and long lists that worked, kept over a restart: each for a week from when it last did."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from ech_workers.ech import Addresses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ech_workers.ech import EchStore

__all__ = ["GoodAddresses", "Score"]

KEPT_FOR = 7 * 86400.0
"""Seconds."""


class Score(NamedTuple):
    """What is known of an address that worked."""

    ms: float | None
    """How long 64 KiB took by it, in milliseconds, if that is known."""
    at: float
    """When it last worked: seconds since the epoch."""


class GoodAddresses:
    """Those of one server, in the store."""

    def __init__(self, store: EchStore, server: str) -> None:
        """server: ``host:port``."""
        self._store = store
        self._key = f"{server} --server-ip"

    def load(self) -> dict[str, Score]:
        """Those that worked within a week, the best first."""
        kept = self._store.addresses(self._key)
        if kept is None:
            return {}
        scores = {}
        for address, ms, at in itertools.zip_longest(kept.addresses, kept.ms, kept.worked_at):
            # An older version kept one time for all. A clock that was set back makes no address old.
            score = Score(ms, kept.fetched_at if at is None else at)
            if address is not None and self._store.clock() - score.at < KEPT_FOR:
                scores[address] = score
        return scores

    def save(self, good: Mapping[str, Score], wall: float) -> None:
        """wall: the present time."""
        ms = tuple(score.ms for score in good.values())
        worked_at = tuple(score.at for score in good.values())
        self._store.store_addresses(self._key, Addresses(tuple(good), wall, KEPT_FOR, ms, worked_at))
