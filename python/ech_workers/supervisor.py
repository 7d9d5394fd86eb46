"""What keeps the tunnel up: look-ups, dial plans, sessions, and what to do when something fails.

One loop in one thread: events of the native engine in, its verbs out. It looks for the server's ECH configuration and
addresses, dials, keeps the configured number of sessions, replaces them before they grow old, and says why there is
none when there is none. What must happen within one dial (addresses in turn, the retry after an ECH rejection, the
second hello after h2) happens in the engine; what was learned there is stored here.

    resolve ── plan ── dial ── up ── replace by age: the successor first, then the old one drains
       ▲                │      │
       │                ▼      ▼ lost: dial again at once
       └──── failed: refresh what came from the cache, else wait: backoff, then the open breaker with single probes

Nothing known is thrown away because it is old: a stale configuration is used while a new one is looked for.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from ech_workers import doh
from ech_workers._logging import forward
from ech_workers.ech import Addresses, Configuration, EchStore
from ech_workers.errors import (
    BLAMED_ON_ADDRESS,
    BLAMED_ON_ENDPOINT,
    BLAMED_ON_TARGET,
    Cause,
    EchError,
    EngineClosed,
    ResolverError,
    SessionTimeout,
    TunnelError,
    from_failure,
)
from ech_workers.resolvers import Resolvers, ResolverStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ech_workers import _native
    from ech_workers._native import DialPlan, Event, FetchPlan
    from ech_workers.config import ClientConfig, Resolver

__all__ = ["EchStatus", "EngineLike", "NativeLike", "SessionStatus", "Supervisor", "SupervisorStatus", "Timing"]

_log = logging.getLogger("ech_workers")

Phase = Literal["resolving", "connecting", "up", "degraded", "waiting", "stopped"]
Breaker = Literal["closed", "open", "half-open"]


class EngineLike(Protocol):
    """The verbs of ``_native.Engine`` that the supervisor uses."""

    def set_plan(self, plan: DialPlan | None) -> None: ...
    def dial(self, plan: DialPlan) -> int: ...
    def retire(self, session: int) -> None: ...
    def probe(self) -> None: ...
    def unavailable(self, reason: str | None) -> None: ...
    def fetch(self, plan: FetchPlan) -> int: ...
    def next_event(self, timeout: float | None) -> Event | None: ...
    def wake(self) -> None: ...


class NativeLike(Protocol):
    """The makers of the native module that the supervisor uses."""

    @property
    def DialPlan(self) -> Callable[..., DialPlan]: ...  # noqa: N802
    @property
    def FetchPlan(self) -> Callable[..., FetchPlan]: ...  # noqa: N802
    def parse_ech_config_list(self, data: bytes) -> Sequence[_native.EchConfig]: ...
    def generate_ech_key(self, config_id: int, public_name: str) -> tuple[bytes, bytes]: ...


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Every duration the supervisor goes by, in seconds."""

    backoff_first: float = 0.5
    backoff_limit: float = 30.0
    breaker_failures: int = 5
    """So many failures in a row open the breaker."""
    breaker_first: float = 15.0
    """How long it stays open before a single dial probes; doubled each time."""
    breaker_limit: float = 60.0
    session_age: float = 3600.0
    """A session is replaced at this age (give or take a tenth), before something on the way does it."""
    session_young: float = 5.0
    """After a session that was lost sooner than this the next dial may have to wait."""
    young_limit: float = 15.0
    """It waits no longer than this: the server can be reached, and the next session may live."""
    refresh_share: float = 0.8
    """The part of a TTL after which a new record is looked for."""
    refresh_floor: float = 10.0
    """Records are not looked for more often than this, whatever their TTL."""
    fresh: float = 5.0
    """What was looked up so recently is not looked up again because a dial failed."""
    clock_jump: float = 5.0
    """A wall clock that moves by so much against the other one: the machine slept."""
    tick: float = 10.0
    """How often the clocks are compared."""
    head_start: float = 0.2
    exchange: float = 5.0


class SessionStatus(msgspec.Struct, frozen=True):
    """One session, or in simple mode one connection that showed that the server can be reached."""

    session: int
    address: str
    ech: str
    public_name: str | None
    profile: str
    hello: str
    alpn: str | None
    cipher: str
    group: str
    resumed: bool
    retried: bool
    tcp_ms: float
    tls_ms: float
    websocket_ms: float
    features: tuple[str, ...]
    age: float
    retiring: bool


class EchStatus(msgspec.Struct, frozen=True):
    """The ECH configuration in use. Times are seconds."""

    source: str
    """dns, retry (handed over by the server), option, or bootstrap."""
    origin: str
    """Whose HTTPS record, or whose server, it came from."""
    public_name: str | None
    age: float | None
    expires_in: float | None
    """Negative when stale."""
    refreshing: bool
    problem: str | None
    """Why it could not be refreshed."""


class SupervisorStatus(msgspec.Struct, frozen=True):
    """All the supervisor knows, at one moment. Times are seconds."""

    server: str
    mode: str
    phase: Phase
    cause: Cause | None
    """Why there is no session, or fewer than wanted."""
    cause_age: float | None
    sessions: tuple[SessionStatus, ...]
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


class Supervisor:
    """Keeps the sessions of one engine to one server up. ``run`` is the loop; the rest may be called from any thread."""

    def __init__(
        self,
        config: ClientConfig,
        engine: EngineLike,
        store: EchStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[Event], object] | None = None,
        native: NativeLike | None = None,
        timing: Timing | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """clock: monotonic seconds. wall: seconds since the epoch. on_event: called in the loop's thread with each event.
        native: where plans are made, the native module unless given. uniform: random over [0, 1), for the jitter."""
        if native is None:
            from ech_workers import _native

            native = _native
        self._config = config
        self._engine = engine
        self._store = store
        self._clock = clock
        self._wall = wall
        self._on_event = on_event
        self._native: NativeLike = native
        self._timing = timing or Timing()
        self._uniform = uniform
        self._server = config.server.authority

        # Held while state is changed or read, never while waiting for an event.
        self._changed = threading.Condition(threading.RLock())
        self._stopping = False
        self._ended = False

        self._resolvers = Resolvers(
            config.resolvers,
            self._fetch,
            clock=clock,
            random=uniform,
            head_start=self._timing.head_start,
            timeout=self._timing.exchange,
        )
        self._records = _LookUp(due=0.0)
        self._names = _LookUp(due=0.0)
        self._names_of: str | None = None
        self._resolved: dict[str, dict[doh.Type, doh.AddressAnswer | TunnelError]] = {}
        self._preferred: str | None = None
        self._bad_configs: bytes | None = None
        # Of several endpoints of the server: how far the list is turned, and how often since one was up or all had failed.
        self._turned = 0
        self._turns = 0
        self._bootstrap: Configuration | None = None
        self._learned_at: float | None = None
        self._public_names: dict[bytes, str | None] = {}

        self._plan: DialPlan | None = None
        self._plan_fields: dict[str, Any] | None = None
        self._plan_used: Configuration | None = None
        self._plan_error: TunnelError | None = None

        self._dials: dict[int, _Dial] = {}
        self._sessions: dict[int, _Session] = {}
        self._verified = False
        self._is_news = True
        self._failures = 0
        self._flaps = 0
        self._flapped_at = -math.inf
        self._farewells = 0
        self._dial_at = 0.0
        self._breaker: Breaker = "closed"
        self._healing = False
        self._settled: TunnelError | None = None

        self._cause: TunnelError | None = None
        self._cause_at = 0.0
        self._told: tuple[str, str] | None = None
        self._unavailable: str | None = None
        self._offset = wall() - clock()
        self._last_turn = clock()

        self._handlers: dict[str, Callable[[Any], None]] = {
            "SessionUp": self._session_up,
            "SessionLost": self._session_lost,
            "DialFailed": self._dial_failed,
            "EchLearned": self._ech_learned,
            "H2Chosen": self._h2_chosen,
            "Fetched": self._resolvers.fetched,
            "FetchFailed": self._resolvers.failed,
            "LogLine": forward,
        }

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
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def stop(self) -> None:
        """Ends ``run``. The engine is left as it is."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._engine.wake()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until a session is up, or the first attempt has failed for good.

        An attempt is the whole of it: every resolver, every address, the retry after an ECH rejection, and a second
        dial when the first one went by what the cache had. Raises the TunnelError that explains the failure,
        SessionTimeout when ``timeout`` (seconds) passes first, EngineClosed when the tunnel is stopped.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._is_ready():
                if self._stopping or self._ended:
                    raise EngineClosed
                if self._settled is not None:
                    raise self._settled.cause.error()
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    if self._cause is not None:
                        raise self._cause.cause.error()
                    raise SessionTimeout(
                        f"no session to {self._server} within {timeout:g} s: still {self._phase()}", code="no-session"
                    )
                self._changed.wait(remaining)

    def status(self) -> SupervisorStatus:
        """What is going on, and why."""
        with self._changed:
            now = self._clock()
            next_attempt = self._next_attempt(now)
            return SupervisorStatus(
                server=str(self._config.server),
                mode=self._config.mode,
                phase=self._phase(),
                cause=self._cause.cause if self._cause else None,
                cause_age=max(0.0, now - self._cause_at) if self._cause else None,
                sessions=tuple(session.status(now) for session in self._sessions.values()),
                wanted=self._wanted(),
                dialing=len(self._dials),
                failures=self._failures,
                breaker=self._breaker,
                next_attempt_in=None if next_attempt is None else max(0.0, next_attempt - now),
                ech=self._ech_status(),
                addresses=tuple(self._plan_fields["addresses"]) if self._plan_fields else (),
                resolvers=self._resolvers.statuses(),
            )

    # ------------------------------------------------------------ the loop

    def _turn(self) -> float:
        """Does what is due, and returns how long to wait for events at most."""
        with self._changed:
            try:
                now = self._clock()
                self._compare_clocks(now)
                # Answers first: they may name something else to look up.
                self._resolvers.advance()
                self._look_up(now)
                following = self._resolvers.advance()
                self._replan()
                self._fill(now)
                self._renew(now)
                deadlines = [now + self._timing.tick, *self._deadlines()]
                if following is not None:
                    deadlines.append(following)
                self._changed.notify_all()
                self._last_turn = now
                return max(0.0, min(deadlines) - self._clock())
            except EngineClosed:
                raise
            except Exception:
                # A defect here must not take the sessions that are up with it.
                _log.exception("the supervisor failed; it goes on in a second")
                return 1.0

    def _take(self, event: Event) -> None:
        # By the name of its class, so that events may come from an engine made of anything.
        handler = self._handlers.get(type(event).__name__)
        try:
            if handler is not None:
                with self._changed:
                    handler(event)
                    self._changed.notify_all()
            if self._on_event is not None:
                self._on_event(event)
        except EngineClosed:
            raise
        except Exception:
            _log.exception("cannot handle %s", type(event).__name__)

    def _deadlines(self) -> list[float]:
        deadlines = [look_up.due for look_up in self._active_look_ups() if not look_up.running]
        if self._plan is not None and self._missing() > 0 and not self._healing:
            deadlines.append(self._dial_at)
        deadlines += [session.renew_at for session in self._sessions.values() if self._is_renewable(session)]
        return deadlines

    def _compare_clocks(self, now: float) -> None:
        """A machine that slept, or a process that was stopped, has sessions that the other side gave up."""
        offset = self._wall() - now
        moved = offset - self._offset
        stalled = now - self._last_turn - self._timing.tick
        self._offset = offset
        if moved < -self._timing.clock_jump:
            _log.info("the clock was set back by %.0f s", -moved)
            return
        gap = max(moved, stalled)
        if gap <= self._timing.clock_jump:
            return
        _log.info("%.0f s are missing (sleep, or a clock that was set): every session is probed and renewed", gap)
        self._engine.probe()
        for session in self._sessions.values():
            session.renew_at = now
        self._resolvers.forgive()
        for look_up in self._active_look_ups():
            look_up.failures = 0
            look_up.due = min(look_up.due, now)
        self._dial_at = now
        if self._breaker == "open":
            self._breaker = "half-open"

    # ------------------------------------------------------------ looking up

    def _active_look_ups(self) -> list[_LookUp]:
        config = self._config
        active = []
        if config.ech and config.ech_config is None:
            active.append(self._records)
        if self._name() is not None:
            active.append(self._names)
        return active

    def _look_up(self, now: float) -> None:
        active = self._active_look_ups()
        if self._records in active and self._records.is_due(now):
            known = self._store.configuration(self._server)
            wait = self._until_refresh(known) if known and self._is_ours(known) else 0.0
            if self._records.begin(now, wait):
                self._ask_records(self._origin(), self._origin_port(), 0)
        name = self._name()
        if name is None:
            return
        if name != self._names_of:
            # The record points elsewhere now; answers about the former name are kept, but decide nothing.
            failures = self._names.failures
            self._names_of, self._names = name, _LookUp(due=now)
            self._names.failures = failures
            self._resolved.clear()
        if self._names.is_due(now):
            addresses = self._store.addresses(name)
            if self._names.begin(now, self._until_refresh(addresses) if addresses else 0.0):
                self._ask_addresses(name)

    def _until_refresh(self, known: Configuration | Addresses) -> float:
        if known.is_stale(self._wall()):
            return 0.0
        return known.fetched_at + known.ttl * self._timing.refresh_share - self._wall()

    def _origin(self) -> str:
        """The name whose HTTPS record is looked up."""
        return self._config.ech_domain or self._config.server.host

    def _origin_port(self) -> int:
        return 443 if self._config.ech_domain else self._config.server.port

    def _is_ours(self, known: Configuration) -> bool:
        """False for what another --ech-domain had published; what the server itself handed over is always right."""
        return known.source == "retry" or known.origin == self._origin()

    def _ask_records(self, host: str, port: int, steps: int, name: str | None = None) -> None:
        question = doh.Question(name or doh.https_name(host, port), "HTTPS")
        _log.debug("asking for %s", question)

        def answered(answer: object) -> None:
            if isinstance(answer, doh.HttpsAnswer) and answer.alias is not None:
                self._ask_records(host, port, answer.steps, answer.alias)
            elif isinstance(answer, doh.HttpsAnswer):
                self._records_found(answer)
            elif isinstance(answer, TunnelError):
                self._records_missing(answer)

        self._resolvers.ask(question, answered, port=port, steps=steps)

    def _records_found(self, answer: doh.HttpsAnswer) -> None:
        endpoint = answer.with_ech()
        origin = self._origin()
        if endpoint is None or endpoint.ech is None:
            why = answer.why or f"the HTTPS record of {answer.name} has no ech="
            self._records_missing(EchError(f"no ECH configuration for {origin}: {why}", code="ech-no-config"))
            return
        problem = self._list_problem(endpoint.ech)
        if problem is not None:
            self._records_missing(EchError(f"the ECH configuration of {origin} cannot be used: {problem}"))
            return
        found = Configuration.of_record(
            answer,
            origin,
            own=self._config.ech_domain is None,
            now=self._wall(),
            is_usable=lambda configs: self._list_problem(configs) is None,
        )
        # The first is tried first again.
        self._turned = 0
        used = self._store.store(self._server, found)
        self._bad_configs = None
        if used.configs == found.configs:
            _log.debug("ECH configuration of %s, public name %s", origin, self._public_name(used.configs))
        self._records.succeeded(self._clock() + self._pause_until_refresh(answer.ttl))
        self._after_look_up()

    def _records_missing(self, error: TunnelError) -> None:
        self._records.failed(error, self._clock(), self._backoff(self._records.failures))
        known = self._configuration()
        if known is not None:
            instead = (
                f"the server is asked for its own, as {known.origin}"
                if known.source == "bootstrap"
                else "the configuration from before is used"
            )
            self._records.mention(f"{error.line()} ({instead})")
        self._after_look_up()

    def _ask_addresses(self, name: str) -> None:
        found: dict[doh.Type, doh.AddressAnswer | TunnelError] = {}
        # Each family is used as soon as it is there.
        self._resolved[name] = found

        def answered(family: doh.Type, answer: object) -> None:
            if isinstance(answer, doh.AddressAnswer | TunnelError):
                found[family] = answer
            if len(found) == 2:
                self._addresses_found(name, found)

        self._resolvers.ask(doh.Question(name, "AAAA"), lambda answer: answered("AAAA", answer))
        self._resolvers.ask(doh.Question(name, "A"), lambda answer: answered("A", answer))

    def _addresses_found(self, name: str, found: dict[doh.Type, doh.AddressAnswer | TunnelError]) -> None:
        look_up = self._names if name == self._names_of else _LookUp(due=0.0)
        answers = [answer for answer in found.values() if isinstance(answer, doh.AddressAnswer)]
        positive = [answer for answer in answers if answer.addresses]
        if positive:
            ttl = min(answer.ttl for answer in positive)
            self._store.store_addresses(name, Addresses(_addresses_of(found), self._wall(), float(ttl)))
            look_up.succeeded(self._clock() + self._pause_until_refresh(ttl))
        else:
            error = next((answer for answer in found.values() if isinstance(answer, TunnelError)), None)
            if error is None:
                why = "; ".join(dict.fromkeys(answer.why for answer in answers if answer.why))
                missing = all(answer.doubtful for answer in answers)
                code = "resolver-no-name" if missing else "resolver-no-address"
                error = ResolverError(f"no address for {name}: {why}", code=code)
            look_up.failed(error, self._clock(), self._backoff(look_up.failures))
            if self._addresses():
                look_up.mention(f"{error.line()} (the addresses from before are used)")
            elif (
                look_up is self._names and error.code in BLAMED_ON_TARGET and self._next_endpoint(self._configuration())
            ):
                _log.info("%s (the server's next endpoint is tried)", error.line())
        self._after_look_up()

    def _after_look_up(self) -> None:
        """A dial that waited for fresh records goes ahead."""
        if self._healing and not any(look_up.running or look_up.force for look_up in self._active_look_ups()):
            self._healing = False
            self._dial_at = self._clock()

    def _pause_until_refresh(self, ttl: float) -> float:
        return max(self._timing.refresh_floor, ttl * self._timing.refresh_share)

    # ------------------------------------------------------------ the plan

    def _configuration(self) -> Configuration | None:
        """The ECH configuration to use: what the server handed over last, the option's, or the record's."""
        config = self._config
        known = self._store.configuration(self._server)
        if config.ech_config is not None:
            if known is not None and known.source == "retry" and known.rejected == config.ech_config:
                return known
            return Configuration(
                configs=config.ech_config, source="option", origin=config.server.host, fetched_at=0.0, ttl=0.0
            )
        if known is None or not self._is_ours(known) or known.configs == self._bad_configs:
            return self._made_up() if self._records.error else None
        return known.turned(self._turned)

    def _next_endpoint(self, failed: Configuration | None) -> bool:
        """Goes on to the server's endpoint of the next priority; False when each has had its turn (RFC 9460 section 3)."""
        known = self._configuration() if self._config.ech and self._config.ech_config is None else None
        if known is None or failed is None or not known.others:
            return False
        if (known.configs, known.target, known.port) != (failed.configs, failed.target, failed.port):
            # Another dial failed before this one.
            return True
        if self._turns == len(known.others):
            # After the pause it goes round again.
            self._turns = 0
            return False
        self._turned += 1
        self._turns += 1
        return True

    def _made_up(self) -> Configuration | None:
        """For a server whose provider's public name is known and nothing else (--ech-bootstrap).

        The key is thrown away: the server cannot but reject it, proves that it owns the public name, and hands over its
        true configurations (RFC 9849 section 6.1.6). The name in the encrypted part is readable to nobody.
        """
        public_name = self._config.ech_bootstrap
        if public_name is not None and self._bootstrap is None:
            _, configs = self._native.generate_ech_key(int(256 * self._uniform()), public_name)
            self._bootstrap = Configuration(
                configs=configs, source="bootstrap", origin=public_name, fetched_at=0.0, ttl=0.0
            )
        return self._bootstrap

    def _name(self) -> str | None:
        """The name whose addresses are looked up; None when none need be."""
        config = self._config
        if config.server_ips or _is_address(config.server.host):
            return None
        known = self._configuration() if config.ech else None
        return (known.target if known else None) or config.server.host

    def _addresses(self) -> tuple[str, ...]:
        config = self._config
        if config.server_ips:
            return config.server_ips
        name = self._name()
        if name is None:
            return (config.server.host,)
        known = self._store.addresses(name)
        fresh = _addresses_of(self._resolved.get(name, {}))
        addresses = fresh or (known.addresses if known else ())
        configuration = self._configuration() if config.ech else None
        if configuration is not None and (not addresses or (known and not fresh and known.is_stale(self._wall()))):
            addresses = (*addresses, *configuration.hints)
        return tuple(dict.fromkeys(addresses))

    def _replan(self) -> None:
        """Makes the plan from what is known by now; nothing happens if it is the one there is."""
        config = self._config
        used = self._configuration() if config.ech else None
        addresses = self._addresses()
        if (config.ech and used is None) or not addresses:
            self._set_plan(None, None, None)
            return
        if self._preferred in addresses:
            # The address that worked last spares the others' time-outs.
            addresses = (self._preferred, *(address for address in addresses if address != self._preferred))
        fields = {
            "server_name": config.server.host,
            "port": (used.port if used else None) or config.server.port,
            # RFC 9460 section 9: the record's port changes where to connect to, not the origin.
            "authority_port": config.server.port,
            "path": config.server.path,
            "token": config.token,
            "addresses": addresses,
            "ech": used.configs if used else None,
            "profile": config.profile,
            "alpn": config.alpn,
            "h2_known": self._store.is_h2_known(self._server),
            "mode": config.mode,
        }
        if fields == self._plan_fields:
            self._plan_used = used
            return
        try:
            plan = self._native.DialPlan(**fields)
        except ValueError as error:
            self._set_plan(None, None, None, self._refused(error, used))
            return
        self._set_plan(plan, fields, used)

    def _refused(self, error: ValueError, used: Configuration | None) -> TunnelError | None:
        """No plan can be made: why, unless a look-up may bring something better than the cache has."""
        if used is None:
            return TunnelError(str(error), layer="config", code="config-invalid")
        now = self._clock()
        if self._records in self._active_look_ups():
            self._bad_configs = used.configs
            if not self._records.was_asked_since(now - self._timing.fresh):
                self._records.due, self._records.force = now, True
                return None
            self._records.error = EchError(str(error))
        return EchError(str(error))

    def _set_plan(
        self,
        plan: DialPlan | None,
        fields: dict[str, Any] | None,
        used: Configuration | None,
        error: TunnelError | None = None,
    ) -> None:
        changed = plan is not self._plan
        self._plan, self._plan_fields, self._plan_used, self._plan_error = plan, fields, used, error
        if changed and self._config.mode == "simple":
            self._engine.set_plan(plan)

    def _list_problem(self, configs: bytes) -> str | None:
        """What is wrong with an ECHConfigList, or None."""
        try:
            entries = self._native.parse_ech_config_list(configs)
        except ValueError as error:
            return str(error)
        if not any(entry.public_name for entry in entries):
            return "it has no configuration of a version this client knows"
        return None

    def _public_name(self, configs: bytes) -> str | None:
        if configs not in self._public_names:
            try:
                entries = self._native.parse_ech_config_list(configs)
            except ValueError:
                entries = []
            # One or two are in use at a time; a server that rotates every second must not fill the memory.
            self._public_names = {configs: next((entry.public_name for entry in entries if entry.public_name), None)}
        return self._public_names[configs]

    # ------------------------------------------------------------ dialing

    def _wanted(self) -> int:
        return self._config.sessions if self._config.mode == "yamux" else 1

    def _live(self) -> list[_Session]:
        return [session for session in self._sessions.values() if not session.retiring]

    def _is_ready(self) -> bool:
        return bool(self._live()) if self._config.mode == "yamux" else self._verified

    def _missing(self) -> int:
        """How many dials are to be started to have the wanted sessions."""
        if self._config.mode == "simple":
            return 0 if self._verified or self._dials else 1
        # A dial for the successor of a session that is gone by now counts like any other.
        filling = sum(dial.replaces is None or dial.replaces not in self._sessions for dial in self._dials.values())
        missing = max(0, self._wanted() - len(self._live()) - filling)
        if not self._live() or self._breaker != "closed":
            # One finds out whether the server can be reached; the others follow it.
            return 0 if filling else min(1, missing)
        return missing

    def _fill(self, now: float) -> None:
        missing = self._missing()
        if missing <= 0 or self._healing:
            return
        if self._plan is None:
            self._explain_missing_plan()
            return
        if now < self._dial_at:
            return
        if self._breaker == "open":
            self._breaker = "half-open"
        for _ in range(missing):
            self._dial(None)

    def _dial(self, replaces: int | None) -> None:
        if self._plan is not None:
            number = self._engine.dial(self._plan)
            self._dials[number] = _Dial(self._plan, replaces, self._plan_used)

    def _explain_missing_plan(self) -> None:
        """There is nothing to dial by: unless a look-up is still running, that is why there is no session."""
        if self._plan_error is not None:
            self._settle(self._plan_error)
            return
        needs_records = self._config.ech and self._configuration() is None
        blocking = self._records if needs_records else self._names
        if blocking.error is not None and not blocking.running:
            self._settle(blocking.error)

    def _session_up(self, event: _native.SessionUp) -> None:
        dial = self._dials.pop(event.dial, None)
        now = self._clock()
        age = self._timing.session_age * (0.9 + 0.2 * self._uniform())
        if self._config.mode == "simple":
            # A warm connection: the next one tells the same, newer.
            self._sessions.clear()
        self._sessions[event.session] = _Session(event, now, now + age)
        self._verified = True
        self._turns = 0
        self._preferred = event.address.rpartition(":")[0].strip("[]")
        self._failures = 0
        self._dial_at = now
        self._breaker = "closed"
        self._healing = False
        self._settled = None
        level = logging.INFO if self._is_news else logging.DEBUG
        ech = f"ECH accepted, outer name {event.public_name}" if event.ech == "accepted" else "without ECH"
        milliseconds = event.tcp_ms + event.tls_ms + event.websocket_ms
        _log.log(level, "session up: %s by %s, %s, %.0f ms", self._server, event.address, ech, milliseconds)
        self._is_news = False
        self._cause = None
        if not self._flaps:
            self._told = None
        self._set_unavailable(None)
        if dial is not None and dial.replaces in self._sessions and dial.replaces is not None:
            self._retire(dial.replaces)

    def _session_lost(self, event: _native.SessionLost) -> None:
        session = self._sessions.pop(event.session, None)
        failure = event.failure
        if failure.code in ("retired", "shutdown"):
            return
        if session is None or session.retiring:
            # It took no new streams any more: no session is missing, but the streams that it still had were cut.
            if failure.code != "yamux-go-away":
                _log.info("a session that was to end with its last stream was lost: %s", failure.message)
            return
        if failure.code == "yamux-go-away":
            self._server_stops(event)
            return
        _log.info("session lost after %.0f s: %s", event.age, failure.message)
        self._is_news = True
        if self._config.mode == "simple":
            return
        if event.age >= self._timing.session_young:
            self._flaps, self._told = 0, None
            return
        # The handshakes succeed and what follows does not: a pause, or it would go round; but not the breaker, which is for
        # servers that cannot be reached.
        now = self._clock()
        # One that was there already at the loss before was lost to the same thing.
        if now - event.age >= self._flapped_at:
            self._flaps += 1
            self._flapped_at = now
            waits = max(0, self._flaps - _HEALING_DIALS)
            pause = min(self._timing.young_limit, self._backoff(waits)) if waits else 0.0
            self._dial_at = now + pause * (0.75 + 0.5 * self._uniform())
        error = from_failure(failure, server=self._server)
        if self._flaps > _HEALING_DIALS:
            self._settle(error)
        else:
            self._note(error)

    def _server_stops(self, event: _native.SessionLost) -> None:
        """A normal go-away is no failure: open streams go on, and the next session is dialled at once."""
        self._is_news = True
        if event.age >= self._timing.session_young:
            self._farewells = 0
        self._farewells += 1
        # A server that stops for long and still takes sessions is not to be asked again and again without a pause.
        if self._farewells > _FAREWELLS:
            self._dial_at = self._clock() + self._backoff(self._farewells - _FAREWELLS - 1)
        _log.log(
            logging.INFO if self._farewells == 1 else logging.DEBUG,
            "%s is stopping: it takes no new streams; those that are open go on, and another session is dialled",
            self._server,
        )

    def _dial_failed(self, event: _native.DialFailed) -> None:
        dial = self._dials.pop(event.dial, None)
        if dial is None and event.dial != 0:
            return
        failure = event.failure
        if failure.code == "shutdown":
            return
        used = dial.used if dial else self._plan_used
        if failure.retry_configs and used is not None:
            self._learn(failure.retry_configs, used)
        error = from_failure(failure, server=self._server)
        if error.code == "ech-disabled" and used is not None:
            error.message += f" (the configuration in use came from {_SOURCES[used.source].format(used.origin)})"
        replaced = self._sessions.get(dial.replaces) if dial and dial.replaces is not None else None
        if replaced is not None and not replaced.retiring:
            # The old session still serves: no reason to alarm anyone, only to try again later.
            if error.code in BLAMED_ON_ENDPOINT:
                self._next_endpoint(dial.used if dial else None)
            replaced.renew_failures += 1
            replaced.renew_at = self._clock() + max(self._timing.backoff_limit, self._backoff(replaced.renew_failures))
            _log.info("a session could not be replaced yet: %s", error.line())
            return
        if dial is None:
            # One connection's dial failed; whether all would is found out by one dial of our own.
            if self._verified:
                self._verified = False
                self._dial_at = self._clock()
                self._note(error)
            return
        self._attempt_failed(error, dial)

    def _attempt_failed(self, error: TunnelError, dial: _Dial) -> None:
        now = self._clock()
        timing = self._timing
        self._failures += 1
        if self._heal(error, dial, now):
            self._note(error)
            return
        lasting = error.code in _LASTING
        if lasting or self._breaker == "half-open" or self._failures >= timing.breaker_failures:
            times = max(0, self._failures - (1 if lasting else timing.breaker_failures))
            pause = min(timing.breaker_limit, timing.breaker_first * 2.0 ** min(times, 16))
            self._breaker = "open"
        else:
            pause = self._backoff(self._failures - 1)
        self._dial_at = now + pause * (0.75 + 0.5 * self._uniform())
        self._settle(error)

    def _heal(self, error: TunnelError, dial: _Dial, now: float) -> bool:
        """True if the next dial needs no pause: it knows better, or will when the records have been looked up again."""
        if error.code in BLAMED_ON_ENDPOINT and self._next_endpoint(dial.used):
            self._dial_at = now
            return True
        if self._failures > _HEALING_DIALS:
            return False
        self._replan()
        if self._plan is not None and self._plan is not dial.plan:
            self._dial_at = now
            return True
        look_up = None
        if error.code in _BLAMED_ON_ECH and self._records in self._active_look_ups():
            look_up = self._records
        elif error.code in BLAMED_ON_ADDRESS and self._names in self._active_look_ups():
            look_up = self._names
        if look_up is None:
            return False
        if not look_up.running:
            if look_up.was_asked_since(now - self._timing.fresh):
                return False
            if error.code == "ech-config-invalid" and dial.used is not None:
                self._bad_configs = dial.used.configs
            look_up.due, look_up.force = now, True
        self._healing = True
        return True

    def _backoff(self, failures: int) -> float:
        return min(self._timing.backoff_limit, self._timing.backoff_first * 2.0 ** min(failures, 16))

    # ------------------------------------------------------------ renewing

    def _is_renewable(self, session: _Session) -> bool:
        return not session.retiring and self._plan is not None and self._config.mode == "yamux"

    def _renew(self, now: float) -> None:
        """Dials the successor of each session whose time has come; the session is retired when that one is up."""
        replaced = {dial.replaces for dial in self._dials.values()}
        for number, session in list(self._sessions.items()):
            if self._is_renewable(session) and now >= session.renew_at:
                if number not in replaced:
                    self._dial(number)
                # Looked at again when the dial has ended, at the latest then.
                session.renew_at = now + self._timing.backoff_limit

    def _retire(self, number: int) -> None:
        self._sessions[number].retiring = True
        self._engine.retire(number)

    # ------------------------------------------------------------ what the engine learned

    def _ech_learned(self, event: _native.EchLearned) -> None:
        used = self._plan_used
        if used is not None and event.server_name == self._config.server.host:
            self._learn(event.configs, used)

    def _learn(self, configs: bytes, used: Configuration) -> None:
        current = self._configuration()
        if current is not None and current.configs == configs:
            # Many dials at a time are told the same.
            return
        self._store.learn(self._server, configs, used=used)
        # What is stored begins with the endpoint that handed it over.
        self._turned = 0
        self._replan()
        now = self._clock()
        often = self._learned_at is not None and now - self._learned_at < _LEARNED_PAUSE
        _log.log(
            logging.DEBUG if often else logging.INFO,
            "%s handed over new ECH configurations; they are used from now on",
            self._server,
        )
        if not often:
            self._learned_at = now

    def _h2_chosen(self, event: _native.H2Chosen) -> None:
        if event.server_name == self._config.server.host and not self._store.is_h2_known(self._server):
            self._store.remember_h2(self._server)
            _log.info("%s chooses h2: later dials begin with the hello for WebSockets", self._server)

    def _fetch(
        self,
        resolver: Resolver,
        *,
        path: str,
        method: Literal["GET", "POST"],
        body: bytes,
        timeout: float,
    ) -> int:
        plan = self._native.FetchPlan(
            server_name=resolver.host,
            port=resolver.port,
            addresses=resolver.addresses,
            path=path,
            method=method,
            body=body,
            profile=self._config.profile,
            timeout=timeout,
        )
        return self._engine.fetch(plan)

    # ------------------------------------------------------------ telling

    def _note(self, error: TunnelError) -> None:
        """Keeps the cause, and logs it unless it is the one that was logged last."""
        reason = (error.layer, error.code)
        known = self._cause
        if known is None or (known.layer, known.code) != reason:
            self._cause_at = self._clock()
        self._cause = error
        self._is_news = True
        if reason == self._told:
            _log.debug("%s", error.line())
            return
        self._told = reason
        _log.warning("%s", error.line())
        if error.detail:
            _log.debug("%s", error.detail)

    def _settle(self, error: TunnelError) -> None:
        """An attempt has failed, and nothing more is done about it before the next one."""
        if self._settled is error:
            return
        self._note(error)
        self._settled = error
        if not self._is_ready():
            self._set_unavailable(error.line())

    def _set_unavailable(self, reason: str | None) -> None:
        if reason != self._unavailable:
            self._unavailable = reason
            self._engine.unavailable(reason)

    def _phase(self) -> Phase:
        if self._stopping or self._ended:
            return "stopped"
        if self._is_ready():
            return "up" if len(self._live()) >= self._wanted() or self._config.mode == "simple" else "degraded"
        if self._dials:
            return "connecting"
        if any(look_up.running for look_up in self._active_look_ups()) or self._settled is None:
            return "resolving"
        return "waiting"

    def _next_attempt(self, now: float) -> float | None:
        if self._stopping or self._dials or self._missing() <= 0:
            return None
        if self._plan is not None:
            return max(now, self._dial_at)
        waiting = [look_up.due for look_up in self._active_look_ups() if look_up.error and not look_up.running]
        return min(waiting, default=None)

    def _ech_status(self) -> EchStatus | None:
        used = (self._plan_used or self._configuration()) if self._config.ech else None
        if used is None:
            return None
        looked_up = used.source in ("dns", "retry")
        wall = self._wall()
        return EchStatus(
            source=used.source,
            origin=used.origin,
            public_name=self._public_name(used.configs),
            age=max(0.0, wall - used.fetched_at) if looked_up else None,
            expires_in=used.expires_at - wall if looked_up else None,
            refreshing=self._records.running,
            problem=self._records.error.message if self._records.error else None,
        )


# These do not pass by themselves within seconds: asking often only annoys the server.
_LASTING = frozenset(
    {
        "token-rejected",
        "certificate-unknown-issuer",
        "certificate-expired",
        "certificate-not-yet-valid",
        "certificate-name",
        "certificate-invalid",
        "tls-version",
    }
)

# A server that changes its keys every second is news once in so many seconds.
_LEARNED_PAUSE = 600.0

# So many failures in a row may be met with a better plan at once; from then on every failure is followed by a pause.
_HEALING_DIALS = 2

# So many young sessions in a row may end with a go-away before the next dial waits: old and new server are there side
# by side for a moment when one takes over from the other.
_FAREWELLS = 2

_BLAMED_ON_ECH = frozenset({"ech-rejected", "ech-disabled", "ech-config-invalid", "certificate-name"})

_SOURCES = {
    "dns": "the HTTPS record of {}",
    "retry": "the server itself",
    "option": "--ech-config",
    "bootstrap": "--ech-bootstrap",
}


class _LookUp:
    """One kind of record, and when to look for it."""

    def __init__(self, due: float) -> None:
        self.due = due
        self.running = False
        self.force = False
        """Look even though what the cache has is fresh."""
        self.failures = 0
        self.error: TunnelError | None = None
        self.asked_at: float | None = None
        self._mentioned: tuple[str, str] | None = None

    def is_due(self, now: float) -> bool:
        return not self.running and now >= self.due

    def begin(self, now: float, wait: float) -> bool:
        """True if the look-up is to start; otherwise it is due when ``wait`` has passed."""
        if wait > 0 and not self.force:
            self.due = now + wait
            return False
        self.force = False
        self.running = True
        self.asked_at = now
        return True

    def was_asked_since(self, moment: float) -> bool:
        return self.asked_at is not None and self.asked_at >= moment

    def succeeded(self, due: float) -> None:
        self.running, self.failures, self.error, self.due, self._mentioned = False, 0, None, due, None

    def failed(self, error: TunnelError, now: float, pause: float) -> None:
        self.running, self.error, self.due = False, error, now + pause
        self.failures += 1

    def mention(self, line: str) -> None:
        """Logs why what is known could not be refreshed, once per reason."""
        if self.error is not None and (self.error.layer, self.error.code) != self._mentioned:
            self._mentioned = (self.error.layer, self.error.code)
            _log.warning("%s", line)


class _Dial:
    def __init__(self, plan: DialPlan, replaces: int | None, used: Configuration | None) -> None:
        self.plan = plan
        self.replaces = replaces
        self.used = used


class _Session:
    def __init__(self, up: _native.SessionUp, at: float, renew_at: float) -> None:
        self.up = up
        self.at = at
        self.renew_at = renew_at
        self.renew_failures = 0
        self.retiring = False

    def status(self, now: float) -> SessionStatus:
        up = self.up
        return SessionStatus(
            session=up.session,
            address=up.address,
            ech=up.ech,
            public_name=up.public_name,
            profile=up.profile,
            hello=up.hello,
            alpn=up.alpn,
            cipher=up.cipher,
            group=up.group,
            resumed=up.resumed,
            retried=up.retried,
            tcp_ms=up.tcp_ms,
            tls_ms=up.tls_ms,
            websocket_ms=up.websocket_ms,
            features=tuple(up.features),
            age=max(0.0, now - self.at),
            retiring=self.retiring,
        )


def _addresses_of(found: dict[doh.Type, doh.AddressAnswer | TunnelError]) -> tuple[str, ...]:
    """Both families in turn, IPv6 first (RFC 8305 section 4)."""
    families = [
        answer.addresses if isinstance(answer := found.get(family), doh.AddressAnswer) else ()
        for family in ("AAAA", "A")
    ]
    longest = max(map(len, families))
    return tuple(family[i] for i in range(longest) for family in families if i < len(family))


def _is_address(host: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
