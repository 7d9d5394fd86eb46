"""The resolvers: a race between them for each question, and what is known of each one's health.

A question goes to the resolver that was fastest of late; when it has not answered after a small head start, or has
failed, the next one is asked as well (RFC 8305's idea, for resolvers of different operators). The first usable answer
wins. That a name has no record is believed when two resolvers say so, because some filter. A resolver that fails is
left alone for a while, unless no other is left.

No input or output here: exchanges are started through a function, and their results are handed in.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from ech_workers import doh
from ech_workers.errors import ResolverError, TunnelError, from_failure
from ech_workers.steps import Asked, Exchanged, Step, ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ech_workers._native import Fetched, FetchFailed
    from ech_workers.config import Resolver
    from ech_workers.doh import Answer

__all__ = ["ResolverStatus", "Resolvers"]

HEAD_START = 0.2
"""Seconds; about a round trip to another continent."""

EXCHANGE_TIMEOUT = 5.0

BACKOFF_FIRST, BACKOFF_LIMIT = 2.0, 120.0
"""Seconds that a failing resolver is left alone: doubled with each failure."""

# What a resolver that was not asked yet is taken for.
_EXPECTED_MS = 1000 * HEAD_START

# Statuses that say the method is not wanted; RFC 8484 section 4.1 asks servers for both, and some have only one.
_METHOD_REFUSED = frozenset({400, 404, 405, 415, 501})

# The certificate is another's, or of an authority that nobody knows.
_FOREIGN = frozenset({"certificate-name", "certificate-unknown-issuer", "certificate-invalid"})

# The resolver did its part.
_FAULTS_OF_THE_ZONE = frozenset({"resolver-alias-chain", "resolver-unusable"})

_log = logging.getLogger("ech_workers.resolver")


class Exchange(Protocol):
    """Starts one HTTPS exchange and returns its number."""

    def __call__(
        self,
        resolver: Resolver,
        *,
        path: str,
        method: Literal["GET", "POST"],
        body: bytes,
        timeout: float,
    ) -> int: ...


class ResolverStatus(msgspec.Struct, frozen=True):
    """One resolver, at one moment. Times are seconds."""

    url: str
    state: Literal["untried", "ok", "failing"]
    failures: int
    """In a row."""
    answers: int
    ms: float | None
    """How long an exchange takes, connection included; smoothed."""
    http_version: str | None
    error: str | None
    """Why the last exchange failed, while failing."""
    age: float | None
    """Since the last usable answer."""
    retry_in: float | None
    """Until it is asked again, while failing."""


class Resolvers:
    """All resolvers of a configuration. Used from one thread."""

    def __init__(
        self,
        resolvers: Sequence[Resolver],
        exchange: Exchange,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        head_start: float = HEAD_START,
        timeout: float = EXCHANGE_TIMEOUT,
        trace: Callable[[Step], object] | None = None,
    ) -> None:
        """clock: monotonic seconds. random: uniform over [0, 1), for the jitter. trace: called with each step."""
        self._healths = [_Health(resolver) for resolver in resolvers]
        self._exchange = exchange
        self._clock = clock
        self._random = random
        self._head_start = head_start
        self._timeout = timeout
        self._trace: Callable[[Step], object] = trace or ignore
        self._races: list[_Race] = []
        self._running: dict[int, tuple[_Race, _Health]] = {}

    def ask(
        self,
        question: doh.Question,
        done: Callable[[Answer | TunnelError], None],
        *,
        port: int = 443,
        steps: int = 0,
    ) -> None:
        """Starts a race. ``done`` is called once, with the answer or with why there is none; never from here."""
        race = _Race(question, done, port, steps, doh.query(question), list(self._healths), self._clock())
        self._races.append(race)

    def advance(self) -> float | None:
        """Starts what is due, and ends races that have nothing left. Returns when to call again, or None."""
        for race in list(self._races):
            self._advance(race)
        return min((race.next_at for race in self._races if race.waiting), default=None)

    def fetched(self, event: Fetched) -> None:
        """Takes the result of an exchange."""
        started = self._running.pop(event.fetch, None)
        if started is None:
            return
        race, health = started
        race.running.discard(event.fetch)
        try:
            age = doh.read_response(event.status, event.headers, event.body)
            answer = race.read(event.body, age)
        except doh.AnswerError as error:
            if event.status in _METHOD_REFUSED and health not in race.switched:
                race.switched.append(health)
                race.waiting.insert(0, health)
                race.next_at = self._clock()
                health.switch_method()
                return
            problem = ResolverError(f"{health.resolver.host}: {error.message}", code=error.code)
            if error.code not in _FAULTS_OF_THE_ZONE:
                self._failed(race, health, problem)
                return
            race.errors.append(problem)
            race.next_at = self._clock()
            health.answered(self._clock(), event.ms, event.http_version)
            self._trace(Exchanged(health.resolver, race.question, problem, event.ms, event.http_version))
            return
        health.answered(self._clock(), event.ms, event.http_version)
        self._trace(Exchanged(health.resolver, race.question, answer, event.ms, event.http_version, age))
        race.took(answer, len(self._healths), self._clock())

    def failed(self, event: FetchFailed) -> None:
        """Takes the failure of an exchange."""
        started = self._running.pop(event.fetch, None)
        if started is not None:
            race, health = started
            race.running.discard(event.fetch)
            self._failed(race, health, from_failure(event.failure, resolver=health.resolver.host))

    def forgive(self) -> None:
        """Lets every resolver be asked again at once: the network may be another one now."""
        for health in self._healths:
            health.retry_at = 0.0

    def statuses(self) -> tuple[ResolverStatus, ...]:
        """Every resolver, in the configured order."""
        now = self._clock()
        return tuple(health.status(now) for health in self._healths)

    def _advance(self, race: _Race) -> None:
        now = self._clock()
        while race.outcome is None and race.waiting and now >= race.next_at:
            health = self._choose(race, now)
            if health is None:
                break
            race.waiting.remove(health)
            self._start(race, health)
            race.next_at = now + self._head_start
        if race.outcome is None and not race.running and not race.waiting:
            race.outcome = race.absences[0] if race.absences else self._nobody(race)
        if race.outcome is not None:
            self._races.remove(race)
            race.done(race.outcome)

    def _choose(self, race: _Race, now: float) -> _Health | None:
        """The next to ask; a resolver that is being left alone only when nothing else is left to wait for."""
        ready = [health for health in race.waiting if health.retry_at <= now]
        if ready:
            return min(ready, key=_Health.expected_ms)
        if race.running:
            # Nothing more to start until one of them fails.
            race.next_at = now + self._timeout
            return None
        return min(race.waiting, key=lambda health: health.retry_at)

    def _start(self, race: _Race, health: _Health) -> None:
        path, body = doh.request(health.resolver.path, race.query, health.method)
        try:
            number = self._exchange(health.resolver, path=path, method=health.method, body=body, timeout=self._timeout)
        except ValueError as error:
            self._failed(race, health, ResolverError(f"{health.resolver.host}: {error}", code="config-invalid"))
            return
        race.running.add(number)
        self._running[number] = (race, health)
        self._trace(Asked(health.resolver, race.question))

    def _failed(self, race: _Race, health: _Health, problem: TunnelError) -> None:
        _log.debug("%s", problem.message)
        health.failed(problem, self._clock(), self._random())
        self._trace(Exchanged(health.resolver, race.question, problem))
        race.errors.append(problem)
        race.next_at = self._clock()

    def _nobody(self, race: _Race) -> TunnelError:
        if len(race.errors) == 1:
            return race.errors[0]
        if not race.errors:
            return ResolverError(f"there is no resolver to ask for {race.question}")
        reasons = "; ".join(error.message for error in race.errors)
        codes = {error.code for error in race.errors}
        if codes <= _FOREIGN:
            # One resolver may be misconfigured; not all of them, of different operators, at the same time.
            return ResolverError(
                f"something answers in place of every resolver, with certificates of its own: {reasons}",
                code="resolver-intercepted",
                detail="\n".join(error.detail for error in race.errors if error.detail) or None,
            )
        # One reason for all of them has its own advice, unless it is only the network's.
        code = codes.pop() if len(codes) == 1 else "resolver-failed"
        advice = race.errors[0].advice if code.startswith("certificate-") else None
        return ResolverError(
            f"no resolver answers for {race.question}: {reasons}",
            code=code if advice else "resolver-failed",
            advice=advice,
            detail="\n".join(error.detail for error in race.errors if error.detail) or None,
        )


class _Race:
    """One question, and how far it has got."""

    def __init__(
        self,
        question: doh.Question,
        done: Callable[[Answer | TunnelError], None],
        port: int,
        steps: int,
        query: bytes,
        waiting: list[_Health],
        now: float,
    ) -> None:
        self.question = question
        self.done = done
        self.port = port
        self.steps = steps
        self.query = query
        self.waiting = waiting
        self.next_at = now
        self.running: set[int] = set()
        self.switched: list[_Health] = []
        self.errors: list[TunnelError] = []
        self.absences: list[Answer] = []
        self.outcome: Answer | TunnelError | None = None

    def read(self, wire: bytes, age: int) -> Answer:
        """Raises doh.AnswerError."""
        answer: Answer
        if self.question.type == "HTTPS":
            answer = doh.read_https_answer(wire, self.question, self.port, steps=self.steps)
        else:
            answer = doh.read_address_answer(wire, self.question)
        return msgspec.structs.replace(answer, ttl=max(0, answer.ttl - age)) if age else answer

    def took(self, answer: Answer, resolvers: int, now: float) -> None:
        if self.outcome is not None:
            return
        if not answer.doubtful:
            self.outcome = answer
            return
        self.absences.append(answer)
        if len(self.absences) >= min(2, resolvers):
            self.outcome = answer
        else:
            self.next_at = now


class _Health:
    """What is known of one resolver."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.method: doh.Method = "POST"
        self.failures = 0
        self.answers = 0
        self.ms: float | None = None
        self.http_version: str | None = None
        self.error: TunnelError | None = None
        self.answered_at: float | None = None
        self.retry_at = 0.0

    def expected_ms(self) -> float:
        return _EXPECTED_MS if self.ms is None else self.ms

    def switch_method(self) -> None:
        self.method = "GET" if self.method == "POST" else "POST"

    def answered(self, now: float, ms: float, http_version: str) -> None:
        self.failures = 0
        self.error = None
        self.retry_at = 0.0
        self.answers += 1
        self.answered_at = now
        self.http_version = http_version
        # A quarter of the newest: about the last four exchanges count.
        self.ms = ms if self.ms is None else self.ms + (ms - self.ms) / 4

    def failed(self, error: TunnelError, now: float, random: float) -> None:
        self.failures += 1
        self.error = error
        pause: float = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2 ** min(self.failures - 1, 16))
        self.retry_at = now + pause * (0.75 + 0.5 * random)

    def status(self, now: float) -> ResolverStatus:
        state: Literal["untried", "ok", "failing"] = "failing" if self.failures else "ok" if self.answers else "untried"
        return ResolverStatus(
            url=self.resolver.url,
            state=state,
            failures=self.failures,
            answers=self.answers,
            ms=self.ms,
            http_version=self.http_version,
            error=self.error.message if self.error else None,
            age=None if self.answered_at is None else max(0.0, now - self.answered_at),
            retry_in=max(0.0, self.retry_at - now) if self.failures else None,
        )
