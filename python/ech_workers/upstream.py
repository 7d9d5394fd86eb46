"""One server: what is known about it, when it is dialled, and its sessions, put together.

An upstream takes the native events that are about its server and answers with verbs of the engine. It says whether a
stream could go there now, and why not.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from ech_workers._logging import about
from ech_workers.candidate import Candidate, dial_plan
from ech_workers.errors import BLAMED_ON_ENDPOINT, BLAMED_ON_TARGET, Cause, TunnelError, from_failure
from ech_workers.knowledge import Knowledge
from ech_workers.overview import Phase, UpstreamStatus
from ech_workers.pacing import FAREWELL_SPREAD, Pacing, Remedy
from ech_workers.pool import Dial, Pool
from ech_workers.probes import Probes
from ech_workers.reasons import Reasons, origin_of
from ech_workers.stalls import PASSED, SILENT, Stalls
from ech_workers.steps import Dialed, Dialing, Failed, Learned, Passed, Step
from ech_workers.unreached import Unreached

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ech_workers import _native
    from ech_workers.candidate import Question
    from ech_workers.config import UpstreamConfig
    from ech_workers.ech import Configuration, EchStore
    from ech_workers.engine import UpstreamEngine
    from ech_workers.timing import Moment, Timing

__all__ = ["Upstream"]

_log = logging.getLogger("ech_workers")

FULL_NEWS = 60.0
"""How often the log says that new connections wait because of what the server allows, in seconds."""


class Upstream:
    """Keeps the sessions to one server up. Used from one thread at a time."""

    def __init__(
        self,
        number: int,
        server: UpstreamConfig,
        sessions: int,
        engine: UpstreamEngine,
        store: EchStore,
        timing: Timing,
        uniform: Callable[[], float],
        trace: Callable[[Step], object],
    ) -> None:
        """sessions: how many to keep up. uniform: random over [0, 1), for the jitter. trace: called with each step."""
        self.number = number
        self.server = server
        self.name = server.name
        self.is_needed = True
        """False: nothing is dialled, and sessions end with their last stream."""
        self.knowledge = Knowledge(server, store, timing, uniform)
        self.pacing = Pacing(timing, uniform)
        self.pool = Pool(server.mode, sessions, timing)
        self.unreached = Unreached(server.name)
        self.stalls = Stalls()
        self.probes = Probes(server.name, number, self.knowledge, self.pool, self.stalls, engine, timing, uniform)
        self._engine = engine
        self._timing = timing
        self._uniform = uniform
        self._trace = trace

        self._candidate: Candidate | None = None
        self._h2_known = False
        self._plan: _native.DialPlan | None = None
        self._missing: TunnelError | None = None
        self._passed: TunnelError | None = None

        self._reasons = Reasons(trace, server.name)
        self._full_told_at = -math.inf

    @property
    def settled(self) -> Cause | None:
        """Why the last attempt failed for good; None while the first one is under way, and when a session was up since."""
        return self._reasons.settled

    @property
    def cause(self) -> Cause | None:
        """Why there is no session, or fewer than wanted."""
        return self._reasons.cause

    @property
    def is_ready(self) -> bool:
        """Whether a stream could be opened now."""
        return self.pool.is_ready

    def is_silent(self, silent: Collection[int]) -> bool:
        """Whether it has sessions and none of them answers; ``silent``: those that do not."""
        live = [session.up.session for session in self.pool.live]
        return bool(live) and self.server.mode == "yamux" and all(number in silent for number in live)

    # ------------------------------------------------------------ a turn

    def questions(self, now: Moment) -> list[Question]:
        """What is to be asked of the resolvers now."""
        return self.knowledge.wanted(now)

    def turn(self, now: Moment) -> None:
        """Does what is due."""
        if not self.knowledge.is_refreshing:
            # A dial that waited for fresh records goes ahead.
            self.pacing.healed(now.clock)
        self._replan(now)
        if not self.is_needed:
            for session in self.pool.live:
                session.retiring = True
                self._engine.retire(session.up.session)
            return
        for number in self.pool.close_lanes(now.clock, self._engine.snapshot):
            self._engine.retire(number)
        if self.pacing.is_spread:
            self.pacing.look(now.clock, is_waited_for=self._engine.snapshot().connections_waiting > 0)
        self._fill(now)
        if self.pool.overflow.may_end(now.clock):
            for number in self.pool.unused(now.clock, self._engine.snapshot().sessions):
                self._engine.retire(number)
        if self._plan is not None:
            for number in self.pool.due(now.clock):
                self._dial(number)
        self.probes.turn(self._plan, now.clock)

    def refresh(self) -> None:
        """Everything is looked up again, and the next dial waits for it."""
        self.knowledge.refresh()
        self.pacing.is_healing = self.knowledge.is_refreshing

    def give_up(self, number: int, now: Moment) -> None:
        """A session does not answer: it takes no new streams, and another one is dialled at once."""
        session = self.pool.sessions.get(number)
        if session is None or session.retiring:
            return
        _log.info("a session to %s does not answer on this network: another is dialled", self.name)
        session.retiring = True
        self._engine.retire(number)
        self.pacing.dial_at = now.clock

    def deadlines(self) -> list[float]:
        """When there is something to do next, at the latest (monotonic)."""
        deadlines = self.knowledge.deadlines()
        if self._plan is None or not self.is_needed:
            return deadlines
        if self._dials_missing > 0 and not self.pacing.is_healing:
            deadlines.append(self.pacing.look_at)
        return deadlines + self.pool.deadlines() + self.probes.deadlines()

    def slept(self, now: Moment) -> None:
        """The machine slept: every session is replaced, and nothing waits any longer."""
        self.pool.renew_all(now.clock)
        self.network_changed(now)

    def network_changed(self, now: Moment) -> None:
        """What failed before may work now."""
        self.knowledge.jumped(now)
        self.pacing.jumped(now.clock)
        self.stalls.forget()
        self.probes.network_changed()

    # ------------------------------------------------------------ the plan

    def _replan(self, now: Moment) -> None:
        """Makes the plan from what is known by now; nothing happens if it is the one there is."""
        found = self._find(now)
        if not isinstance(found, Candidate):
            self._missing = found
            self._set_plan(None, None)
            return
        h2_known = self.knowledge.is_h2_known
        current = self._candidate
        if current is not None and (found.addresses, found.port, found.ech, h2_known) == (
            current.addresses,
            current.port,
            current.ech,
            self._h2_known,
        ):
            self._candidate = found
            return
        try:
            plan = dial_plan(self.server, found, h2_known=h2_known, number=self.number)
        except ValueError as error:
            self._missing = self._refused(str(error), found, now)
            self._set_plan(None, None)
            return
        self._h2_known = h2_known
        self._set_plan(plan, found)

    def _find(self, now: Moment) -> Candidate | TunnelError | None:
        found = self.knowledge.candidate(now)
        if not isinstance(found, TunnelError) or found.code not in BLAMED_ON_TARGET or found is self._passed:
            return found
        self._passed = found
        used = self.knowledge.configuration
        if not self.knowledge.next_endpoint(used):
            return found
        _log.info("%s (the server's next endpoint is tried)", found.line())
        self._trace(Passed(used, found.cause))
        return self.knowledge.candidate(now)

    def _refused(self, why: str, candidate: Candidate, now: Moment) -> TunnelError | None:
        if candidate.used is None or not why.startswith("ech:"):
            return TunnelError(why, layer="config", code="config-invalid")
        return self.knowledge.refused(candidate.used, why, now)

    def _set_plan(self, plan: _native.DialPlan | None, candidate: Candidate | None) -> None:
        changed = plan is not self._plan
        self._plan, self._candidate = plan, candidate
        if changed and self.server.mode == "simple":
            self._engine.set_plan(plan, self.number)

    # ------------------------------------------------------------ dialling

    @property
    def _dials_missing(self) -> int:
        return self.pool.missing(one_at_a_time=self.pacing.breaker != "closed")

    def _fill(self, now: Moment) -> None:
        missing = self._dials_missing
        if missing <= 0 or self.pacing.is_healing:
            return
        if self._plan is None:
            if self._missing is not None:
                # There is nothing to dial by, and nothing is being looked up: that is why there is no session.
                self._settle(self._missing, now)
            return
        if not self.pacing.may_dial(now.clock):
            return
        self.pacing.begin()
        for _ in range(missing):
            self._dial(None)

    def _dial(self, replaces: int | None) -> None:
        plan, candidate = self._plan, self._candidate
        if plan is None or candidate is None:
            return
        number = self._engine.dial(plan)
        self.pool.dials[number] = Dial(plan, replaces, candidate.used)
        self._trace(Dialing(number, candidate))

    def session_up(self, event: _native.SessionUp, now: Moment) -> None:
        self._trace(Dialed(event.dial, event))
        self.probes.up(event, now)
        replaced = self.pool.up(event, now.clock, self._uniform())
        self.knowledge.worked(event.address, now, is_proof=not self.probes.is_announced)
        self.pacing.up(now.clock)
        level = logging.INFO if self._reasons.over(forget=not self.pacing.flaps) else logging.DEBUG
        ech = f"ECH accepted, outer name {event.public_name}" if event.ech == "accepted" else "without ECH"
        milliseconds = event.tcp_ms + event.tls_ms + event.websocket_ms
        extra = about(server=self.name, session=event.session)
        _log.log(level, "session up: %s by %s, %s, %.0f ms", self.name, event.address, ech, milliseconds, extra=extra)
        if replaced is not None:
            self._engine.retire(replaced)

    def echoed(self, event: _native.Echoed, now: Moment) -> None:
        """What came of a probe."""
        stopped = self.probes.ended(event, now)
        if stopped is not None:
            self.give_up(stopped, now)

    def session_lost(self, event: _native.SessionLost, now: Moment) -> None:
        session = self.pool.sessions.pop(event.session, None)
        failure = event.failure
        if failure.code in ("retired", "shutdown"):
            return
        extra = about(failure, server=self.name, session=event.session)
        if session is None or session.retiring:
            # It took no new streams any more: no session is missing, but the streams that it still had were cut.
            if failure.code != "yamux-go-away":
                _log.info("a session that was to end with its last stream was lost: %s", failure.message, extra=extra)
            return
        self.pool.lost(now.clock)
        self._reasons.is_news = True
        if failure.code == "yamux-go-away":
            # No failure: open streams go on.
            first = self.pacing.farewell(now.clock, event.age)
            _log.log(
                logging.INFO if first else logging.DEBUG,
                "%s is stopping: it takes no new streams; those that are open go on, and another session is dialled when it is"
                " needed, and within %.0f s",
                self.name,
                FAREWELL_SPREAD,
                extra=extra,
            )
            return
        _log.info("session lost after %.0f s: %s", event.age, failure.message, extra=extra)
        if failure.code in SILENT and event.received < PASSED:
            self.knowledge.stopped(session.up.address, now)
        if self.server.mode == "simple":
            return
        if not self.pacing.lost(now.clock, event.age):
            self._reasons.forget()
            return
        error = from_failure(failure, server=self.name)
        if self.pacing.is_flapping:
            self._settle(error, now)
        else:
            self._reasons.note(error, now)

    def sessions_full(self, now: Moment) -> None:
        """Every session has as many streams as the server allows: another one is dialled, or new streams wait."""
        answer = self.pool.overflow.full(now.clock, live=len(self.pool.live), wanted=self.pool.wanted)
        if answer == "dial":
            _log.info("%s allows no more connections in a session: another session is dialled", self.name)
        elif answer == "wait" and now.clock - self._full_told_at >= FULL_NEWS:
            self._full_told_at = now.clock
            _log.warning(
                "%s allows no more connections in %d sessions: new ones wait until others end",
                self.name,
                len(self.pool.live),
            )

    def dial_failed(self, event: _native.DialFailed, now: Moment) -> None:
        dial = self.pool.dials.pop(event.dial, None)
        if dial is None and event.dial != 0:
            return
        failure = event.failure
        if failure.code == "shutdown":
            return
        used = dial.used if dial else self.used
        if failure.retry_configs and used is not None:
            self._trace(Learned(used))
            self.knowledge.learn(failure.retry_configs, used, now)
        error = from_failure(failure, server=self.name)
        if error.code == "ech-disabled" and used is not None:
            error.message += f" (the configuration in use came from {origin_of(used)})"
        if dial is None:
            # One connection's dial failed; whether all would is found out by one dial of our own.
            if self.pool.verified:
                self.pool.verified = False
                self.pacing.dial_at = now.clock
                self._reasons.note(error, now)
            return
        extra = about(error, server=self.name)
        replaced = self.pool.replaced_by(dial)
        if replaced is not None:
            # The old session still serves: no reason to alarm anyone, only to try again later.
            if error.code in BLAMED_ON_ENDPOINT and not self.knowledge.next_endpoint(used):
                self.knowledge.attempt_over()
            replaced.renew_failures += 1
            pause = max(self._timing.backoff_limit, self.pacing.backoff(replaced.renew_failures))
            replaced.renew_at = now.clock + pause
            _log.info("a session could not be replaced yet: %s", error.line(), extra=extra)
            return
        if self.pool.further_failed(dial, now.clock):
            _log.info("no further session could be had: %s", error.line(), extra=extra)
            return
        remedy = self._remedy(error, dial, failure.ech_rejected, now)
        asked = min(failure.retry_after or 0.0, self._timing.retry_after_limit)
        self.pacing.failed(now.clock, error.code, remedy, retry_after=asked)
        self._trace(Failed(event.dial, error.cause, failure.ech_rejected, remedy == "none"))
        if remedy == "none":
            self._settle(error, now)
        else:
            self._reasons.note(error, now)

    def _remedy(self, error: TunnelError, dial: Dial, ech_rejected: bool, now: Moment) -> Remedy:
        """Whether the next dial needs no pause: it knows better, or will when records have been looked up again."""
        if error.code in BLAMED_ON_ENDPOINT and self.knowledge.next_endpoint(dial.used):
            return "at-once"
        if error.code in BLAMED_ON_ENDPOINT and self.knowledge.next_addresses():
            return "at-once"
        if ech_rejected and self.knowledge.next_entry(dial.used):
            return "at-once"
        if not self.pacing.may_heal:
            return "none"
        self._replan(now)
        if self._plan is not None and self._plan is not dial.plan:
            return "at-once"
        return "look-up" if self.knowledge.look_again(error.code, dial.used, now) else "none"

    # ------------------------------------------------------------ what the engine learned

    @property
    def used(self) -> Configuration | None:
        """The ECH configuration in the plan."""
        return self._candidate.used if self._candidate else None

    def ech_learned(self, event: _native.EchLearned, now: Moment) -> None:
        if self.used is not None and event.server_name == self.server.server.host:
            self._trace(Learned(self.used))
            self.knowledge.learn(event.configs, self.used, now)

    def h2_chosen(self, event: _native.H2Chosen) -> None:
        if event.server_name == self.server.server.host:
            self.knowledge.h2_chosen()

    # ------------------------------------------------------------ what is shown

    def _settle(self, error: TunnelError, now: Moment) -> None:
        """An attempt has failed, and nothing more is done about it before the next one."""
        self.knowledge.attempt_over()
        self._reasons.settle(error, now)

    @property
    def phase(self) -> Phase:
        if self.is_ready:
            return "up" if self.pool.is_full else "degraded"
        if self.pool.dials:
            return "connecting"
        return "resolving" if self.knowledge.is_looking or self.settled is None else "waiting"

    def next_attempt(self, now: Moment) -> float | None:
        """When the next dial or look-up is tried (monotonic); None when none is due."""
        if self.pool.dials or self._dials_missing <= 0 or not self.is_needed:
            return None
        if self._plan is not None:
            return max(now.clock, self.pacing.dial_at)
        return min(self.knowledge.retries(), default=None)

    def status(self, now: Moment) -> UpstreamStatus:
        """What is going on, and why."""
        next_attempt = self.next_attempt(now)
        return UpstreamStatus(
            upstream=self.number,
            name=self.name,
            server=str(self.server.server),
            mode=self.server.mode,
            phase=self.phase,
            cause=self.cause,
            cause_age=self._reasons.age(now),
            sessions=tuple(session.status(now.clock) for session in self.pool.sessions.values()),
            wanted=self.pool.wanted,
            dialing=len(self.pool.dials),
            failures=self.pacing.failures,
            breaker=self.pacing.breaker,
            next_attempt_in=None if next_attempt is None else max(0.0, next_attempt - now.clock),
            ech=self.knowledge.status(self.used, now),
            addresses=self._candidate.addresses if self._candidate else (),
            unreached=self.unreached.count,
            unreached_why=self.unreached.why,
            stops_after=self.stalls.stops_after,
            probe=self.probes.status(now.clock),
            probes=self.probes.counts,
            can_be_probed=self.probes.is_announced,
        )
