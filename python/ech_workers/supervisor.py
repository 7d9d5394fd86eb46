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
import time
from functools import partial
from typing import TYPE_CHECKING

from ech_workers import _native, waiting
from ech_workers._logging import forward
from ech_workers.clocks import Clocks
from ech_workers.errors import Cause, EngineClosed
from ech_workers.liveness import Liveness
from ech_workers.overview import overview
from ech_workers.questions import LookUps
from ech_workers.readiness import Watchers
from ech_workers.rules import servers_of
from ech_workers.selection import Selection
from ech_workers.steps import Step, ignore
from ech_workers.surroundings import Surroundings
from ech_workers.target_names import TargetNames
from ech_workers.timing import Timing
from ech_workers.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ech_workers._native import Event
    from ech_workers.config import ClientConfig
    from ech_workers.ech import EchStore
    from ech_workers.engine import EngineLike, ServerEvent
    from ech_workers.options.client import Policy, Standby
    from ech_workers.overview import SupervisorStatus
    from ech_workers.timing import Moment

__all__ = ["Supervisor"]

_log = logging.getLogger("ech_workers")


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
        watch_network: bool = False,
        numbers: Sequence[int] | None = None,
        former: Sequence[int] = (),
        timing: Timing | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """clock: monotonic seconds. wall: seconds since the epoch. on_event: called in the loop's thread with each event.
        trace: called there with each step of the upstreams and the resolvers. refresh: look everything up again before the
        first dial, whatever the cache has. watch_network: look out for changes of the machine's addresses and routes. numbers: by which the engine knows the servers; None: their places. former: those of
        servers that are gone, whose sessions serve until there is another one. uniform: random over [0, 1), for the jitter."""
        self._engine = engine
        self._on_event = on_event
        self._timing = timing or Timing()
        self._clocks = Clocks(clock, wall, self._timing)
        self._numbers = tuple(range(len(config.upstreams))) if numbers is None else tuple(numbers)
        self._upstreams = [
            Upstream(number, server, config.sessions, engine, store, self._timing, uniform, trace or ignore)
            for number, server in zip(self._numbers, config.upstreams, strict=True)
        ]
        self._numbered = dict(zip(self._numbers, self._upstreams, strict=True))
        if refresh:
            for upstream in self._upstreams:
                upstream.refresh()
        # Held while state is changed or read, never while waiting for an event.
        self._lock = waiting.lock()
        self._watchers = Watchers()
        self._stopping = False
        self._ended = False
        self._unavailable: str | None = None
        self._surroundings = Surroundings(self._clocks, engine.wake, watches_network=watch_network)
        translation = self._surroundings.translation
        self._look_ups = LookUps(config, engine, self._clocks, self._timing, uniform, trace or ignore, translation)
        for upstream in self._upstreams:
            upstream.knowledge.translation = translation
        self._liveness = Liveness(engine)
        named = frozenset(self._numbers[place] for place in servers_of(config.rules))
        self._select = partial(Selection, upstreams=self._upstreams, engine=engine, named=named, former=tuple(former))
        self._selection = self._select(config.policy, config.standby)
        self._target_names = TargetNames(engine, translation)

    def select(self, policy: Policy, standby: Standby) -> None:
        """From now on new streams go to servers by another policy."""
        with self._lock:
            self._selection = self._select(policy, standby)
            for upstream in self._upstreams:
                # Those that the new policy has no need of are found out by its first turn.
                upstream.is_needed = True
        self._engine.wake()

    def run(self) -> None:
        """Works until ``stop`` is called or the engine is closed."""
        try:
            with self._surroundings.watched():
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
                self._watchers.tell()

    def stop(self) -> None:
        """Ends ``run``. The engine is left as it is."""
        with self._lock:
            self._stopping = True
            self._watchers.tell()
        self._engine.wake()

    def network_changed(self) -> None:
        """Has every session asked for a sign of life, and what failed tried again. For any thread."""
        self._surroundings.network_changed()

    def watch(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Has ``changed`` called each time that something may have changed, and at the end; in the loop's thread, which it
        must not hold up. Returns what takes that back."""
        return self._watchers.add(changed)

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
            # Somebody waits: what was put off for a server's sake alone is done now.
            for upstream in self._upstreams:
                if upstream.pacing.is_spread:
                    upstream.pacing.hurry(self._clocks.now().clock)
                    self._engine.wake()
            settled = self._settled()
        if settled is not None and not patient:
            raise settled.error()
        return False

    def status(self) -> SupervisorStatus:
        """What is going on, and why."""
        with self._lock:
            now = self._clocks.now()
            upstreams = [
                self._selection.shown(upstream, upstream.status(now), now.clock) for upstream in self._upstreams
            ]
            return overview(upstreams, self._look_ups.statuses(), stopped=self._stopping or self._ended)

    def _settled(self) -> Cause | None:
        """Why no server can be reached, when every one's attempt has failed for good."""
        reasons = [upstream.settled for upstream in self._upstreams]
        return None if None in reasons else reasons[0]

    def _turn(self) -> float:
        """Does what is due, and returns how long to wait for events at most."""
        with self._lock:
            try:
                now = self._clocks.now()
                slept = self._surroundings.change(now)
                if slept is not None:
                    self._look_around(now, slept)
                for number in self._liveness.dead(now.clock):
                    for upstream in self._upstreams:
                        upstream.give_up(number, now)
                # Answers first: they may name something else to look up.
                self._look_ups.advance()
                for upstream in self._upstreams:
                    upstream.turn(now)
                    self._look_ups.ask_all(upstream.questions(now))
                self._look_ups.ask_all(self._target_names.questions())
                following = self._look_ups.advance()
                deadlines = [now.clock + self._timing.tick]
                for upstream in self._upstreams:
                    deadlines += upstream.deadlines()
                if following is not None:
                    deadlines.append(following)
                self._selection.turn(now.clock)
                deadlines += self._selection.deadlines(now.clock) + self._liveness.deadlines()
                self._tell_engine()
                self._watchers.tell()
                return max(0.0, min(deadlines) - self._clocks.now().clock)
            except EngineClosed:
                raise
            except Exception:
                # A defect here must not take the sessions that are up with it.
                _log.exception("the supervisor failed; it goes on in a second")
                return 1.0

    def _take(self, event: Event) -> None:
        try:
            with self._lock:
                now = self._clocks.now()
                self._handle(event, now)
                self._selection.turn(now.clock)
                self._tell_engine()
                self._watchers.tell()
            if self._on_event is not None:
                self._on_event(event)
        except EngineClosed:
            raise
        except Exception:
            _log.exception("cannot handle %s", type(event).__name__)

    def _handle(self, event: Event, now: Moment) -> None:
        match event:
            case _native.Fetched():
                self._look_ups.fetched(event)
            case _native.FetchFailed():
                self._look_ups.failed(event)
            case _native.NameWanted():
                self._target_names.wanted(event.name)
            case _native.LogLine():
                forward(event, self._numbered)
            case _native.Woken():
                pass
            case _:
                upstream = self._numbered.get(event.upstream)
                if upstream is not None:
                    self._handle_of(upstream, event, now)
                elif isinstance(event, _native.SessionUp):
                    # A dial that was under way when its server was taken out of the configuration.
                    self._engine.retire(event.session)

    def _handle_of(self, upstream: Upstream, event: ServerEvent, now: Moment) -> None:
        match event:
            case _native.SessionUp():
                upstream.session_up(event, now)
            case _native.SessionLost():
                upstream.session_lost(event, now)
            case _native.SessionsFull():
                upstream.sessions_full(now)
            case _native.DialFailed():
                upstream.dial_failed(event, now)
            case _native.EchLearned():
                upstream.ech_learned(event, now)
            case _native.H2Chosen():
                upstream.h2_chosen(event)
            case _native.BulkChanged():
                upstream.pool.bulk_changed(event, now.clock)
            case _native.Echoed():
                upstream.echoed(event, now)
            case _native.Unreached():
                upstream.unreached.note(event)
                self._selection.unreached(event.tried, now.clock)

    def _look_around(self, now: Moment, slept: float) -> None:
        """After a change of the network sessions may be dead, and what failed may work. After a sleep (or when the process
        was stopped) the other side has given the sessions up: all are replaced."""
        self._liveness.begin(now.clock, slept)
        self._look_ups.forgive()
        self._target_names.forget()
        for upstream in self._upstreams:
            if slept:
                upstream.slept(now)
            else:
                upstream.network_changed(now)

    def _tell_engine(self) -> None:
        """Local connections fail at once, with the reason, while no server can be reached."""
        ready = any(upstream.is_ready for upstream in self._upstreams)
        settled = None if ready else self._settled()
        reason = settled.line() if settled is not None else None
        if reason != self._unavailable:
            self._unavailable = reason
            self._engine.unavailable(reason, settled.code if settled is not None else "")
