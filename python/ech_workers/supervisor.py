"""The loop that keeps the tunnel up, over all servers.

One thread: events of the native engine in, its verbs out. Each server is an ``Upstream``; the resolvers are shared. What
must happen within one dial (addresses in turn, the retry after an ECH rejection, the second hello after h2) happens in
the engine.

    look-ups ── plan ── dial ── up ── replaced by age: the successor first, then the old session drains
       ▲          ▲                │
       │          │                ▼ lost: dialled again at once
       └──────────┴── failed: refresh what came from the cache, else wait: backoff, then the open breaker
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from ech_workers import _native, waiting
from ech_workers._logging import forward
from ech_workers.errors import Cause, EngineClosed, SessionTimeout
from ech_workers.knowledge import EchStatus
from ech_workers.pacing import Breaker
from ech_workers.pool import SessionStatus
from ech_workers.resolvers import Resolvers, ResolverStatus
from ech_workers.steps import Step, ignore
from ech_workers.timing import Moment, Timing
from ech_workers.upstream import Phase, Upstream, UpstreamEngine, UpstreamStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers._native import Event, FetchPlan
    from ech_workers.config import ClientConfig, Resolver
    from ech_workers.ech import EchStore
    from ech_workers.errors import TunnelError
    from ech_workers.knowledge import Question

__all__ = ["EchStatus", "EngineLike", "SessionStatus", "Supervisor", "SupervisorStatus", "Timing", "UpstreamStatus"]

_log = logging.getLogger("ech_workers")


class EngineLike(UpstreamEngine, Protocol):
    """The verbs of ``_native.Engine`` that the supervisor and its upstreams use."""

    def probe(self) -> None: ...
    def unavailable(self, reason: str | None, code: str = "") -> None: ...
    def fetch(self, plan: FetchPlan) -> int: ...
    def next_event(self, timeout: float | None) -> Event | None: ...
    def wake(self) -> None: ...


class SupervisorStatus(msgspec.Struct, frozen=True):
    """All the supervisor knows, at one moment. Times are seconds.

    What is said of one server alone (up to ``addresses``) is said of the one that is in the best state.
    """

    server: str
    mode: str
    phase: Phase
    cause: Cause | None
    """Why there is no session, or fewer than wanted."""
    cause_age: float | None
    sessions: tuple[SessionStatus, ...]
    """Of every server."""
    wanted: int
    dialing: int
    failures: int
    """Dials in a row that failed."""
    breaker: Breaker
    next_attempt_in: float | None
    ech: EchStatus | None
    """None with --no-ech, or before anything is known."""
    addresses: tuple[str, ...]
    resolvers: tuple[ResolverStatus, ...]
    upstreams: tuple[UpstreamStatus, ...] = ()
    """Every server, in the configured order."""


class Supervisor:
    """Keeps the sessions of one engine up. ``run`` is the loop; the rest may be called from any thread."""

    def __init__(
        self,
        config: ClientConfig,
        engine: EngineLike,
        store: EchStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[Event], object] | None = None,
        trace: Callable[[Step], object] | None = None,
        refresh: bool = False,
        timing: Timing | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """clock: monotonic seconds. wall: seconds since the epoch. on_event: called in the loop's thread with each event.
        trace: called there with each step of the upstreams and the resolvers. refresh: look everything up again before the
        first dial, whatever the cache has. uniform: random over [0, 1), for the jitter."""
        self._engine = engine
        self._clock = clock
        self._wall = wall
        self._on_event = on_event
        self._timing = timing or Timing()
        self._profile = config.profile
        self._upstreams = [
            Upstream(number, server, config.sessions, engine, store, self._timing, uniform, trace or ignore)
            for number, server in enumerate(config.upstreams)
        ]
        if refresh:
            for upstream in self._upstreams:
                upstream.refresh()
        self._resolvers = Resolvers(
            config.resolvers,
            self._fetch,
            clock=clock,
            random=uniform,
            head_start=self._timing.head_start,
            timeout=self._timing.exchange,
            trace=trace,
        )
        # Held while state is changed or read, never while waiting for an event.
        self._lock = waiting.lock()
        self._watchers: list[Callable[[], object]] = []
        self._stopping = False
        self._ended = False
        self._unavailable: str | None = None
        self._offset = wall() - clock()
        self._last_turn = clock()

    # ------------------------------------------------------------ for every thread

    def run(self) -> None:
        """Works until ``stop`` is called or the engine is closed."""
        try:
            while not self._stopping:
                event = self._engine.next_event(self._turn())
                # Many events may have come at once; the timers get their turn in between.
                for _ in range(256):
                    if event is None or self._stopping:
                        break
                    self._take(event)
                    event = self._engine.next_event(0.0)
        except EngineClosed:
            pass
        finally:
            with self._lock:
                self._ended = True
                self._notify()

    def stop(self) -> None:
        """Ends ``run``. The engine is left as it is."""
        with self._lock:
            self._stopping = True
            self._notify()
        self._engine.wake()

    def watch(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Has ``changed`` called each time that something may have changed, and at the end; in the loop's thread, which it
        must not hold up. Returns what takes that back."""
        with self._lock:
            self._watchers.append(changed)

        def stop() -> None:
            with self._lock:
                self._watchers.remove(changed)

        return stop

    def is_ready(self, *, patient: bool = False) -> bool:
        """Whether a session is up. Raises the TunnelError that says why there is none, once an attempt has failed for good
        (unless ``patient``), and EngineClosed when the tunnel is stopped.

        An attempt is the whole of it: every server, every resolver, every address, the retry after an ECH rejection, and
        a second dial when the first one went by what the cache had.
        """
        with self._lock:
            if any(upstream.is_ready for upstream in self._upstreams):
                return True
            if self._stopping or self._ended:
                raise EngineClosed
            settled = self._settled()
        if settled is not None and not patient:
            raise settled.error()
        return False

    def late(self, timeout: float) -> TunnelError:
        """What to raise when ``timeout`` seconds were not enough for a session."""
        with self._lock:
            best = self._best()
        if best.cause is None:
            why, detail, advice = f"still {best.phase}", None, None
        else:
            why, detail, advice = best.cause.message, best.cause.detail, best.cause.advice or ""
        message = f"no session to {best.name} within {timeout:g} s: {why}"
        return SessionTimeout(message, code="session-timeout", detail=detail, advice=advice)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until a session is up, or the first attempt has failed for good.

        Raises what ``is_ready`` raises, SessionTimeout when ``timeout`` (seconds) passes first.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        changed = threading.Event()
        stop = self.watch(changed.set)
        try:
            while not self.is_ready():
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise self.late(timeout or 0.0)
                changed.wait(remaining)
                changed.clear()
        finally:
            stop()

    def _notify(self) -> None:
        for changed in tuple(self._watchers):
            changed()

    def status(self) -> SupervisorStatus:
        """What is going on, and why."""
        with self._lock:
            now = self._now()
            upstreams = tuple(upstream.status(now) for upstream in self._upstreams)
            best = upstreams[self._best().number]
            stopped = self._stopping or self._ended
            return SupervisorStatus(
                server=best.server,
                mode=best.mode,
                phase="stopped" if stopped else best.phase,
                cause=best.cause,
                cause_age=best.cause_age,
                sessions=tuple(session for upstream in upstreams for session in upstream.sessions),
                wanted=best.wanted,
                dialing=sum(upstream.dialing for upstream in upstreams),
                failures=best.failures,
                breaker=best.breaker,
                next_attempt_in=None if stopped else best.next_attempt_in,
                ech=best.ech,
                addresses=best.addresses,
                resolvers=self._resolvers.statuses(),
                upstreams=upstreams,
            )

    def _best(self) -> Upstream:
        """The first of the servers in the best state."""
        return min(self._upstreams, key=lambda upstream: (_PHASES.index(upstream.phase), upstream.number))

    def _settled(self) -> Cause | None:
        """Why no server can be reached, when every one's attempt has failed for good."""
        reasons = [upstream.settled for upstream in self._upstreams]
        return None if None in reasons else reasons[0]

    # ------------------------------------------------------------ the loop

    def _now(self) -> Moment:
        return Moment(self._clock(), self._wall())

    def _turn(self) -> float:
        """Does what is due, and returns how long to wait for events at most."""
        with self._lock:
            try:
                now = self._now()
                self._compare_clocks(now)
                # Answers first: they may name something else to look up.
                self._resolvers.advance()
                for upstream in self._upstreams:
                    upstream.turn(now)
                    self._ask(upstream.questions(now))
                following = self._resolvers.advance()
                deadlines = [now.clock + self._timing.tick]
                for upstream in self._upstreams:
                    deadlines += upstream.deadlines()
                if following is not None:
                    deadlines.append(following)
                self._tell_engine()
                self._notify()
                self._last_turn = now.clock
                return max(0.0, min(deadlines) - self._clock())
            except EngineClosed:
                raise
            except Exception:
                # A defect here must not take the sessions that are up with it.
                _log.exception("the supervisor failed; it goes on in a second")
                return 1.0

    def _take(self, event: Event) -> None:
        try:
            with self._lock:
                self._handle(event, self._now())
                self._tell_engine()
                self._notify()
            if self._on_event is not None:
                self._on_event(event)
        except EngineClosed:
            raise
        except Exception:
            _log.exception("cannot handle %s", type(event).__name__)

    def _handle(self, event: Event, now: Moment) -> None:
        upstream = self._upstreams[0]
        match event:
            case _native.SessionUp():
                upstream.session_up(event, now)
            case _native.SessionLost():
                upstream.session_lost(event, now)
            case _native.DialFailed():
                upstream.dial_failed(event, now)
            case _native.EchLearned():
                upstream.ech_learned(event, now)
            case _native.H2Chosen():
                upstream.h2_chosen(event)
            case _native.Fetched():
                self._resolvers.fetched(event)
            case _native.FetchFailed():
                self._resolvers.failed(event)
            case _native.LogLine():
                forward(event)
            case _native.Woken():
                pass

    def _compare_clocks(self, now: Moment) -> None:
        """A machine that slept, or a process that was stopped, has sessions that the other side gave up."""
        offset = now.wall - now.clock
        moved = offset - self._offset
        stalled = now.clock - self._last_turn - self._timing.tick
        self._offset = offset
        if moved < -self._timing.clock_jump:
            _log.info("the clock was set back by %.0f s", -moved)
            return
        gap = max(moved, stalled)
        if gap <= self._timing.clock_jump:
            return
        _log.info("%.0f s are missing (sleep, or a clock that was set): every session is probed and renewed", gap)
        self._engine.probe()
        self._resolvers.forgive()
        for upstream in self._upstreams:
            upstream.jumped(now)

    def _tell_engine(self) -> None:
        """Local connections fail at once, with the reason, while no server can be reached."""
        ready = any(upstream.is_ready for upstream in self._upstreams)
        settled = None if ready else self._settled()
        reason = settled.line() if settled is not None else None
        if reason != self._unavailable:
            self._unavailable = reason
            self._engine.unavailable(reason, settled.code if settled is not None else "")

    # ------------------------------------------------------------ look-ups

    def _ask(self, questions: list[Question]) -> None:
        for asked in questions:
            self._resolvers.ask(
                asked.question,
                lambda answer, asked=asked: asked.answered(answer, self._now()),  # type: ignore[misc]
                port=asked.port,
                steps=asked.steps,
            )

    def _fetch(
        self, resolver: Resolver, *, path: str, method: Literal["GET", "POST"], body: bytes, timeout: float
    ) -> int:
        plan = _native.FetchPlan(
            server_name=resolver.host,
            port=resolver.port,
            addresses=resolver.addresses,
            path=path,
            method=method,
            body=body,
            profile=self._profile,
            timeout=timeout,
        )
        return self._engine.fetch(plan)


# From the best to the worst.
_PHASES: tuple[Phase, ...] = ("up", "degraded", "connecting", "resolving", "waiting", "stopped")
