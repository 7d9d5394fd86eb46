"""When one server is to show that more than the beginning of a connection gets through, and what it showed.

Where the server announces it, 64 KiB go there and come back: over a session without streams, or in simple mode over a
connection of its own. Probes are rare: for an address that is new among many, for a server whose connections stopped before
it is used first again, and now and then for one that stands by.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers import _native
    from ech_workers.engine import EchoEngine
    from ech_workers.knowledge import Knowledge
    from ech_workers.pool import Pool
    from ech_workers.stalls import Stalls
    from ech_workers.timing import Moment, Timing

__all__ = ["ECHO", "ProbeCounts", "ProbeStatus", "Probes"]

_log = logging.getLogger("ech_workers")

ECHO = "echo"
"""With this word a server announces that it sends back what a probe sends."""

STANDBY_INTERVAL = 1800.0
"""Seconds between the probes of a server that stands by, on average; each is half as long to one and a half times as long."""

LOOK_AGAIN = 5.0
"""Seconds until it is looked again whether a session without streams is there."""

AGAIN = 60.0
"""Seconds after a probe that said nothing, on average; and after too many that stopped, doubled each time."""

STOPS, AGAIN_LIMIT = 8, 3600.0
"""So many may stop in a row without a pause, which is no longer than this."""

OVERDUE = 120.0
"""Seconds after which no outcome is waited for any more; the engine gives up long before."""

Outcome = Literal["passed", "stopped", "failed"]


class ProbeStatus(msgspec.Struct, frozen=True):
    """A server's last probe. Times are seconds, unless a name ends in ``_ms``."""

    outcome: Outcome
    """passed: everything came back; stopped: it did not, and nothing else came either; failed: it says nothing of the way."""
    address: str
    received: int
    """Bytes of payload that had come over the session by then."""
    passed_ms: float | None
    """How long 64 KiB took there and back."""
    age: float


class ProbeCounts(msgspec.Struct, frozen=True):
    """A server's probes so far, by what came of them."""

    passed: int = 0
    stopped: int = 0
    failed: int = 0


class _Running(NamedTuple):
    """A probe that is under way."""

    number: int
    session: int | None
    """None: it has a connection of its own."""
    address: str
    until: float


class Probes:
    """The probes of one server, one at a time. Used from one thread."""

    def __init__(
        self,
        name: str,
        number: int,
        knowledge: Knowledge,
        pool: Pool,
        stalls: Stalls,
        engine: EchoEngine,
        timing: Timing,
        uniform: Callable[[], float],
    ) -> None:
        """name and number: the server's. uniform: random over [0, 1)."""
        self._name = name
        self._number = number
        self._knowledge = knowledge
        self._pool = pool
        self._stalls = stalls
        self._engine = engine
        self._timing = timing
        self._uniform = uniform
        self.is_announced: bool | None = None
        """Whether the server announces that it sends back what a probe sends; None before the first session."""
        self.stands_by = False
        """It stands by for others: nothing else tells whether its connections stop."""
        self.counts = ProbeCounts()
        self._running: _Running | None = None
        self._last: tuple[ProbeStatus, float] | None = None
        self._standby_at = -math.inf
        self._not_before = -math.inf
        self._look_at = math.inf
        self._stops = 0

    def up(self, event: _native.SessionUp, now: Moment) -> None:
        """A session is up."""
        self.is_announced = ECHO in event.features
        self._stalls.has_to_prove = self.is_announced
        if self._standby_at == -math.inf:
            self._next_of_standby(now.clock)

    def network_changed(self) -> None:
        """What the last network cut off may pass on this one."""
        self._stops, self._not_before = 0, -math.inf

    def turn(self, plan: _native.DialPlan | None, now: float) -> None:
        """Begins a probe if one is due. plan: to dial by, in simple mode."""
        self._look_at = math.inf
        if self._running is not None and now < self._running.until:
            self._look_at = self._running.until
            return
        self._running = None
        self._look_at = max(self._due_at(), self._not_before)
        if now < self._look_at:
            return
        self._running = self._begin(plan, now)
        if self._running is None:
            self._not_before = now + LOOK_AGAIN
        self._look_at = self._not_before if self._running is None else self._running.until

    def deadlines(self) -> list[float]:
        """When the next turn is due, at the latest (monotonic)."""
        return [] if math.isinf(self._look_at) else [self._look_at]

    def ended(self, event: _native.Echoed, now: Moment) -> int | None:
        """What came of a probe. Returns the session over which nothing comes any more, if it was such a one's."""
        running = self._running
        if running is None or event.echo != running.number:
            return None
        self._running = None
        outcome = event.outcome
        if outcome == "busy":
            # A stream came first: nothing was sent.
            self._not_before = now.clock + LOOK_AGAIN
            return None
        self._next_of_standby(now.clock)
        address = event.address or running.address
        self._last = ProbeStatus(outcome, address, event.received, event.ms, 0.0), now.clock
        self.counts = msgspec.structs.replace(self.counts, **{outcome: getattr(self.counts, outcome) + 1})
        if outcome == "passed":
            self._stops = 0
            self._stalls.passed()
            self._knowledge.scored(address, event.ms or 0.0, now)
            return None
        if outcome == "failed":
            self._not_before = now.clock + self._jitter(AGAIN)
            return None
        self._stops += 1
        if self._stops >= STOPS:
            self._not_before = now.clock + self._jitter(min(AGAIN_LIMIT, AGAIN * 2.0 ** min(self._stops - STOPS, 16)))
        self._knowledge.stopped(address, now)
        if self._stalls.stopped(event.received, now.clock, running.session):
            _log.warning("%s", self._stalls.words(self._name, now.clock))
        return running.session

    def status(self, now: float) -> ProbeStatus | None:
        """The last one; None before it."""
        if self._last is None:
            return None
        last, at = self._last
        return msgspec.structs.replace(last, age=max(0.0, now - at))

    def _due_at(self) -> float:
        """When a probe is due; never without a session to a server that announces it."""
        if not self.is_announced or not self._pool.is_ready:
            return math.inf
        due = [math.inf]
        if any(self._knowledge.is_unproved(session.up.address) for session in self._pool.live):
            due.append(-math.inf)
        if self._timing.probe_first and self._last is None:
            due.append(-math.inf)
        if self._stalls.is_suspect:
            due.append(self._stalls.until)
        if self.stands_by:
            due.append(self._standby_at)
        return min(due)

    def _begin(self, plan: _native.DialPlan | None, now: float) -> _Running | None:
        """None: there is no place for it now."""
        if self._pool.is_simple:
            if plan is None:
                return None
            address = next((session.up.address for session in self._pool.live), "")
            return _Running(self._engine.echo_alone(plan), None, address, now + OVERDUE)
        live = {session.up.session: session.up.address for session in self._pool.live}
        idle = [
            session.session
            for session in self._engine.snapshot().sessions
            if session.session in live and session.streams == 0 and session.unanswered is None
        ]
        if not idle:
            return None
        chosen = min(idle, key=lambda session: not self._knowledge.is_unproved(live[session]))
        return _Running(self._engine.echo(chosen, self._number), chosen, live[chosen], now + OVERDUE)

    def _next_of_standby(self, now: float) -> None:
        self._standby_at = now + self._jitter(STANDBY_INTERVAL)

    def _jitter(self, pause: float) -> float:
        return pause * (0.5 + self._uniform())
