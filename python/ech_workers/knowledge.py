"""What is known about one server's name: ECH configurations, addresses, endpoints, and the bootstrap.

``wanted`` says which questions are to be asked of the resolvers; their answers come back through ``Question.answered``.
``candidate`` says where and how to dial by what is known by now, or why that is not known. No clock and no engine here:
the present time is handed in, and whoever asks hands in the answers.

Nothing known is thrown away because it is old: a stale configuration is used while a new one is looked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from ech_workers import _native, doh
from ech_workers.addresses import is_address
from ech_workers.candidate import Candidate, Question, addresses_of
from ech_workers.ech import Addresses, Configuration, list_problem, public_name
from ech_workers.errors import (
    BLAMED_ON_ADDRESS,
    BLAMED_ON_ECH,
    EchError,
    ResolverError,
    TunnelError,
)
from ech_workers.families import Found, address_questions
from ech_workers.good_addresses import GoodAddresses
from ech_workers.lookup import LookUp
from ech_workers.nat64 import Translation
from ech_workers.ranges import Ranges
from ech_workers.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers.config import UpstreamConfig
    from ech_workers.doh import Answer
    from ech_workers.ech import EchStore
    from ech_workers.timing import Moment, Timing

__all__ = ["EchStatus", "Knowledge"]

_log = logging.getLogger("ech_workers")

# A server that changes its keys every second is news once in so many seconds.
_LEARNED_PAUSE = 600.0


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


class Knowledge:
    """What is known about one server. Used from one thread."""

    def __init__(self, server: UpstreamConfig, store: EchStore, timing: Timing, uniform: Callable[[], float]) -> None:
        """uniform: random over [0, 1)."""
        self._server = server
        self._key = server.server.authority
        self._store = store
        self._timing = timing
        self._uniform = uniform
        self._records = LookUp(due=0.0)
        self._names = LookUp(due=0.0)
        self._names_of: str | None = None
        self._questions: list[Question] = []
        self._resolved: dict[str, Found] = {}
        self._preferred: str | None = None
        self._bad_configs: bytes | None = None
        self._turns = Turns()
        self._ranges: Ranges | None = None
        if Ranges.is_needed(server.server_ips):
            good = GoodAddresses(store, self._key)
            self._ranges = Ranges(server.server_ips, good.load(), uniform, good.save)
        self._bootstrap: Configuration | None = None
        self._learned_at: float | None = None
        self.translation = Translation()
        """How addresses are reached from here."""

    # ------------------------------------------------------------ questions and answers

    @property
    def origin(self) -> str:
        """The name whose HTTPS record is looked up."""
        return self._server.ech_domain or self._server.server.host

    @property
    def is_looking(self) -> bool:
        """Whether an answer is being waited for."""
        return any(look_up.running for look_up in self._active())

    @property
    def is_refreshing(self) -> bool:
        """Whether a look-up is running or demanded: a dial may do better after it."""
        return any(look_up.running or look_up.force for look_up in self._active())

    def wanted(self, now: Moment) -> list[Question]:
        """What is to be asked now."""
        active = self._active()
        if self._records in active and self._records.is_due(now.clock):
            known = self._store.configuration(self._key)
            wait = self._until_refresh(known, now) if known and self._is_ours(known) else 0.0
            if self._records.begin(now.clock, wait):
                port = 443 if self._server.ech_domain else self._server.server.port
                self._ask_records(doh.https_name(self.origin, port), port, 0)
        name = self.name
        if name is not None:
            if name != self._names_of:
                # The record points elsewhere now; answers about the former name are kept, but decide nothing.
                failures = self._names.failures
                self._names_of, self._names = name, LookUp(due=now.clock)
                self._names.failures = failures
                self._resolved.clear()
            if self._names.is_due(now.clock):
                addresses = self._store.addresses(name)
                if self._names.begin(now.clock, self._until_refresh(addresses, now) if addresses else 0.0):
                    self._ask_addresses(name)
        questions, self._questions = self._questions, []
        return questions

    def deadlines(self) -> list[float]:
        """When look-ups are due (monotonic)."""
        return [look_up.due for look_up in self._active() if not look_up.running]

    def retries(self) -> list[float]:
        """When look-ups that failed are tried again (monotonic)."""
        return [look_up.due for look_up in self._active() if look_up.error and not look_up.running]

    def _active(self) -> list[LookUp]:
        active = []
        if self._server.ech and self._server.ech_config is None:
            active.append(self._records)
        if self.name is not None:
            active.append(self._names)
        return active

    def _until_refresh(self, known: Configuration | Addresses, now: Moment) -> float:
        if known.is_stale(now.wall):
            return 0.0
        return known.fetched_at + known.ttl * self._timing.refresh_share - now.wall

    def _is_ours(self, known: Configuration) -> bool:
        """False for what another --ech-domain had published; what the server itself handed over is always right."""
        return known.source == "retry" or known.origin == self.origin

    def _ask_records(self, name: str, port: int, steps: int) -> None:
        question = doh.Question(name, "HTTPS")
        _log.debug("asking for %s", question)

        def answered(answer: Answer | TunnelError, now: Moment) -> None:
            if isinstance(answer, TunnelError):
                self._records_missing(answer, now)
            elif isinstance(answer, doh.HttpsAnswer) and answer.alias is not None:
                self._ask_records(answer.alias, port, answer.steps)
            elif isinstance(answer, doh.HttpsAnswer):
                self._records_found(answer, now)

        self._questions.append(Question(question, port, steps, answered))

    def _records_found(self, answer: doh.HttpsAnswer, now: Moment) -> None:
        endpoint = answer.with_ech()
        if endpoint is None or endpoint.ech is None:
            why = answer.why or f"the HTTPS record of {answer.name} has no ech="
            self._records_missing(EchError(f"no ECH configuration for {self.origin}: {why}", code="ech-no-config"), now)
            return
        problem = list_problem(endpoint.ech)
        if problem is not None:
            self._records_missing(EchError(f"the ECH configuration of {self.origin} cannot be used: {problem}"), now)
            return
        found = Configuration.of_record(
            answer,
            self.origin,
            own=self._server.ech_domain is None,
            now=now.wall,
            is_usable=lambda configs: list_problem(configs) is None,
        )
        self._turns.first_again()
        used = self._store.store(self._key, found)
        self._bad_configs = None
        if used.configs == found.configs:
            _log.debug("ECH configuration of %s, public name %s", self.origin, public_name(used.configs))
        self._records.succeeded(now.clock + self._pause_until_refresh(answer.ttl))

    def _records_missing(self, error: TunnelError, now: Moment) -> None:
        self._records.failed(error, now.clock, self._backoff(self._records.failures))
        known = self._configuration()
        if known is not None:
            instead = (
                f"the server is asked for its own, as {known.origin}"
                if known.source == "bootstrap"
                else "the configuration from before is used"
            )
            self._records.mention(f"{error.line()} ({instead})")

    def _ask_addresses(self, name: str) -> None:
        found: Found = {}
        # Each family is used as soon as it is there.
        self._resolved[name] = found
        self._questions += address_questions(name, found, lambda now: self._addresses_found(name, found, now))

    def _addresses_found(self, name: str, found: Found, now: Moment) -> None:
        look_up = self._names if name == self._names_of else LookUp(due=0.0)
        answers = [answer for answer in found.values() if isinstance(answer, doh.AddressAnswer)]
        positive = [answer for answer in answers if answer.addresses]
        if positive:
            ttl = min(answer.ttl for answer in positive)
            self._store.store_addresses(name, Addresses(addresses_of(found), now.wall, float(ttl)))
            look_up.succeeded(now.clock + self._pause_until_refresh(ttl))
            return
        error = next((answer for answer in found.values() if isinstance(answer, TunnelError)), None)
        if error is None:
            why = "; ".join(dict.fromkeys(answer.why for answer in answers if answer.why))
            missing = all(answer.doubtful for answer in answers)
            code = "resolver-no-name" if missing else "resolver-no-address"
            error = ResolverError(f"no address for {name}: {why}", code=code)
        look_up.failed(error, now.clock, self._backoff(look_up.failures))
        if self._addresses(now.wall):
            look_up.mention(f"{error.line()} (the addresses from before are used)")

    def _pause_until_refresh(self, ttl: float) -> float:
        return max(self._timing.refresh_floor, ttl * self._timing.refresh_share)

    def _backoff(self, failures: int) -> float:
        return min(self._timing.backoff_limit, self._timing.backoff_first * 2.0 ** min(failures, 16))

    # ------------------------------------------------------------ the candidate

    def candidate(self, now: Moment) -> Candidate | TunnelError | None:
        """Where and how to dial; why that is not known; or None while answers are being waited for."""
        used = self._configuration() if self._server.ech else None
        addresses = self._addresses(now.wall)
        if (self._server.ech and used is None) or not addresses:
            if self._server.ech and used is None:
                return None if self._records.running else self._records.error
            # What is known of another name than the present one says nothing.
            return None if self._names.running or self._names_of != self.name else self._names.error
        if self._preferred in addresses:
            # The address that worked last spares the others' time-outs.
            addresses = (self._preferred, *(address for address in addresses if address != self._preferred))
        return Candidate(
            self.translation.reach(addresses), (used.port if used else None) or self._server.server.port, used
        )

    @property
    def configuration(self) -> Configuration | None:
        """The ECH configuration to use; None without ECH, and while nothing is known."""
        return self._configuration() if self._server.ech else None

    def _configuration(self) -> Configuration | None:
        """What the server handed over last, the option's, or the record's."""
        server = self._server
        known = self._store.configuration(self._key)
        if server.ech_config is not None:
            if known is not None and known.source == "retry" and known.rejected == server.ech_config:
                return known
            return self._turns.apply(
                Configuration(
                    configs=server.ech_config, source="option", origin=server.server.host, fetched_at=0.0, ttl=0.0
                )
            )
        if known is None or not self._is_ours(known) or known.configs == self._bad_configs:
            return self._made_up() if self._records.error else None
        return self._turns.apply(known)

    def _made_up(self) -> Configuration | None:
        """For a server whose provider's public name is known and nothing else (--ech-bootstrap).

        The key is thrown away: the server cannot but reject it, proves that it owns the public name, and hands over its
        true configurations (RFC 9849 section 6.1.6). The name in the encrypted part is readable to nobody.
        """
        name = self._server.ech_bootstrap
        if name is not None and self._bootstrap is None:
            _, configs = _native.generate_ech_key(int(256 * self._uniform()), name)
            self._bootstrap = Configuration(configs=configs, source="bootstrap", origin=name, fetched_at=0.0, ttl=0.0)
        return self._bootstrap

    @property
    def name(self) -> str | None:
        """The name whose addresses are looked up; None when none need be."""
        if self._server.server_ips or is_address(self._server.server.host):
            return None
        known = self.configuration
        return (known.target if known else None) or self._server.server.host

    def _addresses(self, wall: float) -> tuple[str, ...]:
        if self._ranges is not None:
            return self._ranges.current
        if self._server.server_ips:
            return self._server.server_ips
        name = self.name
        if name is None:
            return (self._server.server.host,)
        known = self._store.addresses(name)
        fresh = addresses_of(self._resolved.get(name, {}))
        addresses = fresh or (known.addresses if known else ())
        configuration = self.configuration
        if configuration is not None and (not addresses or (known and not fresh and known.is_stale(wall))):
            addresses = (*addresses, *configuration.hints)
        return tuple(dict.fromkeys(addresses))

    # ------------------------------------------------------------ what dials taught

    def next_endpoint(self, failed: Configuration | None) -> bool:
        """Goes on to the server's endpoint of the next priority; False when each has had its turn."""
        known = self.configuration if self._server.ech_config is None else None
        return known is not None and failed is not None and self._turns.next_endpoint(known, failed)

    def attempt_over(self) -> None:
        """A pause follows: the next attempt may go round all endpoints again."""
        self._turns.attempt_over()

    def next_addresses(self) -> bool:
        """Goes on to other addresses of those given; False when there are no others, or a pause is due."""
        return self._ranges is not None and self._ranges.failed()

    def next_entry(self, failed: Configuration | None) -> bool:
        """The server has not the key of the list's first entry, and could not prove that it may say so: goes on to the next
        one; False when there is none."""
        known = self.configuration
        return known is not None and failed is not None and self._turns.next_entry(known, failed)

    def look_again(self, code: str, used: Configuration | None, now: Moment) -> bool:
        """After a failed dial: True if a look-up that may bring something better is running or starts now."""
        active = self._active()
        look_up = None
        if code in BLAMED_ON_ECH and self._records in active:
            look_up = self._records
        elif code in BLAMED_ON_ADDRESS and self._names in active:
            look_up = self._names
        if look_up is None:
            return False
        if not look_up.running:
            if look_up.was_asked_since(now.clock - self._timing.fresh):
                return False
            if code == "ech-config-invalid" and used is not None:
                self._bad_configs = used.configs
            look_up.demand(now.clock)
        return True

    def refused(self, used: Configuration, why: str, now: Moment) -> TunnelError | None:
        """No plan can be made with this configuration: the error, unless a look-up may bring something better."""
        error = EchError(why)
        if self._records in self._active():
            self._bad_configs = used.configs
            if not self._records.was_asked_since(now.clock - self._timing.fresh):
                self._records.demand(now.clock)
                return None
            self._records.error = error
        return error

    def worked(self, address: str, now: Moment, *, is_proof: bool) -> None:
        """A session is up by this address (``address:port``). is_proof: no probe will tell whether more gets through."""
        self._turns.attempt_over()
        self._preferred = self._host(address)
        if self._ranges is not None:
            self._ranges.worked(self._preferred, now.wall, is_proof=is_proof)

    def is_unproved(self, address: str) -> bool:
        """Whether this address is one of many of which it is not known how long 64 KiB take by it."""
        return self._ranges is not None and self._ranges.is_unproved(self._host(address))

    def scored(self, address: str, ms: float, now: Moment) -> None:
        """64 KiB got through by this address, in so many milliseconds."""
        if self._ranges is not None:
            self._ranges.scored(self._host(address), ms, now.wall)

    def stopped(self, address: str, now: Moment) -> None:
        """A session by this address became silent before much had come over it."""
        if self._ranges is not None:
            self._ranges.stopped(self._host(address), now.wall)

    def _host(self, address: str) -> str:
        return self.translation.original(address.rpartition(":")[0].strip("[]"))

    def learn(self, configs: bytes, used: Configuration, now: Moment) -> None:
        """The server rejected ``used`` and handed over these, authenticated."""
        current = self._configuration()
        if current is not None and current.configs == configs:
            # Many dials at a time are told the same.
            return
        self._store.learn(self._key, configs, used=self._turns.whole(used))
        # What is stored begins with the endpoint that handed it over.
        self._turns.first_again()
        often = self._learned_at is not None and now.clock - self._learned_at < _LEARNED_PAUSE
        level = logging.DEBUG if often else logging.INFO
        _log.log(level, "%s handed over new ECH configurations; they are used from now on", self._key)
        if not often:
            self._learned_at = now.clock

    @property
    def is_h2_known(self) -> bool:
        """Whether the server is known to choose h2."""
        return self._store.is_h2_known(self._key)

    def h2_chosen(self) -> None:
        """The server chose h2 when it was offered."""
        if not self.is_h2_known:
            self._store.remember_h2(self._key)
            _log.info("%s chooses h2: later dials begin with the hello for WebSockets", self._key)

    def refresh(self) -> None:
        """Everything is looked up again, whatever the cache has."""
        self._names_of = self.name
        for look_up in self._active():
            look_up.force = True

    def jumped(self, now: Moment) -> None:
        """The machine slept, or the network is another one: failed look-ups are tried again at once."""
        for look_up in self._active():
            look_up.failures = 0
            look_up.due = min(look_up.due, now.clock)

    def status(self, used: Configuration | None, now: Moment) -> EchStatus | None:
        """The configuration in use (or the one that would be); None without ECH and while nothing is known."""
        used = (used or self._configuration()) if self._server.ech else None
        if used is None:
            return None
        looked_up = used.source in ("dns", "retry")
        return EchStatus(
            source=used.source,
            origin=used.origin,
            public_name=public_name(used.configs),
            age=max(0.0, now.wall - used.fetched_at) if looked_up else None,
            expires_in=used.expires_at - now.wall if looked_up else None,
            refreshing=self._records.running,
            problem=self._records.error.message if self._records.error else None,
        )
