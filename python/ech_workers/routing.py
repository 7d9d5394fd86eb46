"""Which of several servers new streams go to, by a policy, and when a server that was lost is trusted again.

No clock and no engine: what is known of each server goes in, an order comes out. New streams go to the first tier that has
a session; within a tier they are shared by weight.

* ``priority``: the servers of the lowest priority number, then those of the next;
* ``fastest``: the one with the shortest round trip; another one has to be clearly faster for a while to take its place;
* ``spread``: all that work, by their weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ech_workers.options.client import Policy

__all__ = ["Routing", "Tiers", "View"]

Tiers = tuple[tuple[tuple[int, int], ...], ...]
"""Servers with their weights, the best tier first."""

PROBATION_FIRST, PROBATION_LIMIT = 5.0, 300.0
"""Seconds that a server which was lost must work before it is preferred again; doubled with each loss."""

FORGIVEN_AFTER = 600.0
"""Seconds without a loss after which earlier ones do not count."""

CLEARLY_FASTER, LEAST_GAIN, FASTER_FOR = 0.75, 2.0, 10.0
"""Policy "fastest": a round trip of at most this part of the present server's, and at least so many milliseconds less, for so
many seconds."""


class View(NamedTuple):
    """What routing looks at of one server."""

    number: int
    priority: int
    weight: int
    works: bool
    """It has a session, and that answers."""
    round_trip: float | None
    """Milliseconds."""


class _Standing:
    """The history of one server."""

    def __init__(self) -> None:
        self.works = False
        self.losses = 0
        self.lost_at = -math.inf
        self.trusted_at = -math.inf

    def look(self, works: bool, now: float) -> None:
        if works == self.works:
            return
        self.works = works
        if not works:
            self.losses = self.losses + 1 if now - self.lost_at < FORGIVEN_AFTER else 1
            self.lost_at = now
        elif self.losses:
            self.trusted_at = now + min(PROBATION_LIMIT, PROBATION_FIRST * 2.0 ** min(self.losses - 1, 16))


class Routing:
    """The order of the servers. Times are monotonic seconds."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._standings: dict[int, _Standing] = {}
        self._fastest: int | None = None
        self._faster: dict[int, float] = {}
        """The servers that are clearly faster than the fastest so far, each with the time since when."""

    def tiers(self, views: Sequence[View], now: float) -> Tiers:
        """The order from now on."""
        for view in views:
            self._standings.setdefault(view.number, _Standing()).look(view.works, now)
        trusted = [view for view in views if view.works and self._is_trusted(view.number, now)]
        probation = [view for view in views if view.works and not self._is_trusted(view.number, now)]
        rest = [view for view in views if not view.works]
        return (*self._ordered(trusted, now), *_by_priority(probation), *_by_priority(rest))

    def deadline(self, now: float) -> float | None:
        """When a server's probation ends, if one is on it."""
        ends = [standing.trusted_at for standing in self._standings.values() if standing.works]
        return min((end for end in ends if end > now), default=None)

    @property
    def compared(self) -> frozenset[int]:
        """The servers whose round trips are to be measured again, so that one measurement alone does not change the order."""
        if self._fastest is None or not self._faster:
            return frozenset()
        return frozenset({self._fastest, *self._faster})

    def is_on_probation(self, number: int, now: float) -> bool:
        """Whether a server works again and is not preferred yet."""
        standing = self._standings.get(number)
        return standing is not None and standing.works and not self._is_trusted(number, now)

    def _is_trusted(self, number: int, now: float) -> bool:
        return now >= self._standings[number].trusted_at

    def _ordered(self, trusted: list[View], now: float) -> Tiers:
        if not trusted:
            self._faster = {}
            return ()
        match self._policy:
            case "priority":
                return _by_priority(trusted)
            case "spread":
                return (tuple((view.number, view.weight) for view in trusted),)
            case "fastest":
                return self._by_round_trip(trusted, now)

    def _by_round_trip(self, trusted: list[View], now: float) -> Tiers:
        ranked = sorted(trusted, key=lambda view: (_round_trip(view), view.priority, view.number))
        present = next((view for view in ranked if view.number == self._fastest), None)
        if present is None:
            self._fastest, self._faster = ranked[0].number, {}
        else:
            # Two that are alike may take turns at being the best.
            faster = [view.number for view in ranked if _is_clearly_faster(view, present)]
            self._faster = {number: self._faster.get(number, now) for number in faster}
            proved = [number for number, since in self._faster.items() if now - since >= FASTER_FOR]
            if proved:
                self._fastest, self._faster = proved[0], {}
        ranked.sort(key=lambda view: view.number != self._fastest)
        return tuple(((view.number, view.weight),) for view in ranked)


def _round_trip(view: View) -> float:
    return math.inf if view.round_trip is None else view.round_trip


def _is_clearly_faster(view: View, present: View) -> bool:
    limit = min(CLEARLY_FASTER * _round_trip(present), _round_trip(present) - LEAST_GAIN)
    return _round_trip(view) <= limit and _round_trip(view) < math.inf


def _by_priority(views: Sequence[View]) -> Tiers:
    priorities = sorted({view.priority for view in views})
    return tuple(
        tuple((view.number, view.weight) for view in views if view.priority == priority) for priority in priorities
    )
