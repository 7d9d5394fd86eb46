"""Where new streams go when there are several servers: what is seen of each, put before the policy, told to the engine."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import msgspec

from ech_workers.distances import Distances
from ech_workers.routing import Routing, Tiers, View
from ech_workers.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ech_workers._native import SessionSnapshot
    from ech_workers.engine import SelectionEngine
    from ech_workers.options.client import Policy, Standby
    from ech_workers.overview import Role, UpstreamStatus
    from ech_workers.upstream import Upstream

__all__ = ["ASKED_FOR", "Selection"]

_log = logging.getLogger("ech_workers")


ASKED_FOR = 60.0
"""How long a cold standby server is kept up for the targets that the servers before it cannot reach, in seconds."""


class Selection:
    """The choice among the servers of one tunnel. With one server there is none, and nothing is done.

    Times are monotonic seconds.
    """

    def __init__(
        self,
        policy: Policy,
        standby: Standby,
        upstreams: Sequence[Upstream],
        engine: SelectionEngine,
        named: Collection[int] = (),
        former: Sequence[int] = (),
    ) -> None:
        """named: the servers that rules send connections to, which are kept connected for that. former: the numbers of
        servers that are gone, whose sessions are used until there is another one."""
        self._former: Tiers = (tuple((number, 1) for number in former),) if former else ()
        self._named = named
        self._upstreams = upstreams
        self._engine = engine
        self._routing = Routing(policy)
        # With "spread" all are in use; with "fastest" a server has to be connected for its round trip to be known.
        self._is_cold = standby == "cold" and policy == "priority"
        self._watch = Watch()
        self._distances = Distances()
        self._tiers: Tiers = ()
        self._told: frozenset[int] = frozenset()
        self._was_ready: set[int] = set()
        self._asked_for: dict[int, float] = {}
        """Cold servers that are kept up for targets which others cannot reach, each with the time until when."""
        if self._is_cold:
            # Before the first turn, in which every server that is needed is dialled.
            self._set_needed(-math.inf)

    def turn(self, now: float) -> None:
        """Looks at the sessions when that is due, and tells the engine where new streams go if that has changed."""
        if len(self._upstreams) == 1:
            return
        if now >= self._watch.look_at:
            self._look(now)
        views = [self._view(upstream, now) for upstream in self._upstreams]
        tiers = (*self._routing.tiers(views, now), *self._former)
        if self._is_cold:
            self._set_needed(now)
        if tiers != self._tiers:
            self._tiers = tiers
            self._engine.route(tiers)
            self._tell()
        for upstream in self._upstreams:
            upstream.probes.stands_by = self.role(upstream, now) == "standby"

    def _tell(self) -> None:
        """Says where new connections go, if that has changed."""
        used = self._used
        if used and used != self._told:
            self._told = used
            names = ", ".join(upstream.name for upstream in self._upstreams if upstream.number in used)
            _log.info("new connections go to %s", names)

    def _set_needed(self, now: float) -> None:
        """Standby servers are needed while every better one has failed, or is on probation."""
        is_needed = True
        for priority in sorted({upstream.server.priority for upstream in self._upstreams}):
            tier = [upstream for upstream in self._upstreams if upstream.server.priority == priority]
            for upstream in tier:
                is_asked_for = now < self._asked_for.get(upstream.number, now)
                upstream.is_needed = is_needed or is_asked_for or upstream.number in self._named
            roles = [self.role(upstream, now) for upstream in tier]
            is_under_way = any(upstream.settled is None and not upstream.is_ready for upstream in tier)
            if is_under_way and not self._was_ready.intersection(upstream.number for upstream in tier):
                is_needed = False
            if any(role in ("in use", "standby") for role in roles):
                is_needed = False
        self._was_ready |= {upstream.number for upstream in self._upstreams if upstream.is_ready}

    def unreached(self, tried: Collection[int], now: float) -> None:
        """A stream's target cannot be reached by these servers: the best of the others is to be there, if it is cold too."""
        if not self._is_cold:
            return
        others = [upstream for upstream in self._upstreams if upstream.number not in tried]
        if others:
            best = min(others, key=lambda upstream: (upstream.settled is not None, upstream.server.priority))
            self._asked_for[best.number] = now + ASKED_FOR

    def deadlines(self, now: float) -> list[float]:
        """When the next turn is due, at the latest."""
        if len(self._upstreams) == 1:
            return []
        probation = self._routing.deadline(now)
        return [self._watch.look_at] if probation is None else [self._watch.look_at, probation]

    def role(self, upstream: Upstream, now: float) -> Role:
        """Why new streams go to this server, or do not."""
        if not upstream.is_ready:
            return "down"
        if upstream.is_silent(self._watch.silent):
            return "silent"
        if len(self._upstreams) == 1 or upstream.number in self._used:
            return "in use"
        if upstream.stalls.is_demoted(now):
            return "demoted"
        return "probation" if self._routing.is_on_probation(upstream.number, now) else "standby"

    @property
    def _used(self) -> frozenset[int]:
        """The servers of the first tier, as far as one can go there."""
        first = self._tiers[0] if self._tiers else ()
        used = {number for number, _ in first}
        return frozenset(
            upstream.number for upstream in self._upstreams if upstream.number in used and upstream.is_ready
        )

    def _look(self, now: float) -> None:
        snapshot = self._engine.snapshot()
        sessions = snapshot.sessions
        asked = self._watch.look(sessions, now)
        self._distances.look(snapshot)
        asked.update(self._distances.due(sessions, self._routing.compared, now))
        for number in asked:
            self._engine.probe(number)
        self._look_for_stalls(sessions, now)

    def shown(self, upstream: Upstream, status: UpstreamStatus, now: float) -> UpstreamStatus:
        """A server's status, with why traffic goes there or does not."""
        return msgspec.structs.replace(status, role=self.role(upstream, now))

    def _look_for_stalls(self, sessions: Sequence[SessionSnapshot], now: float) -> None:
        for upstream in self._upstreams:
            stalls = upstream.stalls
            own = [session for session in sessions if session.upstream == upstream.number]
            if stalls.look(own, self._watch.silent, now):
                _log.warning("%s", stalls.words(upstream.name, now))

    def _view(self, upstream: Upstream, now: float) -> View:
        server = upstream.server
        is_silent = upstream.is_silent(self._watch.silent)
        works = upstream.is_ready and not is_silent and not upstream.stalls.is_demoted(now)
        return View(upstream.number, server.priority, server.weight, works, self._distances.of(upstream.number))
