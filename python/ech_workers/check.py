"""What works and what does not, layer by layer: resolvers, address, TCP, TLS with ECH, certificate, WebSocket, token,
yamux, a target. Each finding is a row with what was seen, how long it took, and what to try.

Nothing is tried that the tunnel itself would not do: no name goes out in clear, and no plain DNS is asked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import msgspec

from ech_workers import _native, doh
from ech_workers.ech import Addresses, Configuration, EchStore
from ech_workers.errors import (
    BLAMED_ON_ENDPOINT,
    BLAMED_ON_TARGET,
    ConfigError,
    ConnectError,
    EchError,
    ResolverError,
    SessionError,
    TargetError,
    TunnelError,
    from_failure,
)
from ech_workers.fingerprint import ClientHello

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ech_workers.config import ClientConfig, Resolver

__all__ = ["DEFAULT_TARGET", "Check", "Row"]

DEFAULT_TARGET = "http://example.com/"

DIAL_TIMEOUT = 45.0
"""Three connections at most, each with its time-outs; seconds."""

TCP_TIMEOUT = 5.0
PING_TIMEOUT = 10.0
STREAM_TIMEOUT = 15.0

SAMPLE_BYTES, SAMPLE_SECONDS = 16 << 20, 5.0
"""Whichever comes first ends the throughput sample."""

# Below this the figure says more about the first round trips than about the rate.
_SAMPLE_LEAST = 256 << 10

Layer = Literal["resolver", "address", "tcp", "tls", "ech", "certificate", "websocket", "token", "yamux", "target"]

# As they follow one another in a dial.
_DIAL_LAYERS: tuple[Layer, ...] = ("tls", "ech", "certificate", "websocket", "token")

# The next endpoint of the server, if there is one, makes up for these.
_NEXT_ENDPOINT = BLAMED_ON_ENDPOINT | BLAMED_ON_TARGET

# Failures behind which something on the way may stand that knows the hello.
_MAYBE_BLOCKED = frozenset({"tls-reset", "tls-timeout", "tls-alert"})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One finding."""

    layer: Layer
    subject: str
    """Which resolver, address, name."""
    ok: bool | None
    """None: not tried, or nothing to judge."""
    what: str
    """What was seen; with a failure, why."""
    ms: float | None = None
    advice: str | None = None
    code: str | None = None
    detail: str | None = None
    decides: bool = True
    """False for what others make up for: one resolver, address or endpoint of several."""


class _Dialed(msgspec.Struct, frozen=True):
    """How a dial ended."""

    plan: _native.DialPlan
    outcome: _native.SessionUp | TunnelError
    rejected: Configuration | None
    """The configuration that the server rejected within the dial, if it then handed over its own."""
    used: Configuration | None
    ech_rejected: bool
    """It failed in a handshake in which the server rejected ECH."""


class Check:
    """One run through all layers. ``rows`` yields the findings as they come; ``exit_code`` is right after the last."""

    def __init__(self, config: ClientConfig, *, target: str = DEFAULT_TARGET) -> None:
        """target: an http:// or https:// URL; a large file there makes the throughput sample meaningful.

        Raises ConfigError.
        """
        self._config = config
        self._target = _Target(target)
        self._store = EchStore(config.cache_dir)
        self._server = config.server.authority
        self._others_follow = False
        self._hello_shown = False
        self.error: TunnelError | None = None
        """The first decisive failure."""

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else self.error.exit_code

    def rows(self) -> Iterator[Row]:
        """Tries everything, in order, as far as it goes."""
        config = self._config
        try:
            engine = _native.Engine(ca_pem=() if config.ca_pem is None else (config.ca_pem,), log_level=40)
        except ValueError as error:
            raise ConfigError(str(error), option="--ca-file") from None
        try:
            yield from self._run(engine)
        finally:
            engine.close()

    def _run(self, engine: _native.Engine) -> Iterator[Row]:
        config = self._config
        used: Configuration | None = None
        answers = _Answers(engine, config, self._store)
        if answers.needed:
            yield from answers.ask()
        if config.ech:
            used, problem = answers.configuration()
            if used is None:
                yield self._failed(problem, "ech" if problem.layer == "ech" else "resolver", answers.origin)
                return
            yield _configuration_row(used, answers.origin, problem)
        # In their order, as the client itself goes through them, until one works or fails for another reason.
        endpoints = [used.turned(times) for times in range(len(used.others) + 1)] if used else [None]
        dialed = None
        for number, endpoint in enumerate(endpoints, 1):
            self._others_follow = number < len(endpoints)
            place = f"endpoint {number} of {len(endpoints)}"
            if endpoint is not None and len(endpoints) > 1:
                yield self._endpoint_row(endpoint, None, f"{place}, public name {_public_name(endpoint)}")
            dialed = yield from self._reach(engine, answers, endpoint)
            if dialed is not None and endpoint is not None and len(endpoints) > 1:
                yield self._endpoint_row(endpoint, True, f"{place} is used")
            if dialed is not None or self.error is not None:
                break
        self._others_follow = False
        if dialed is None:
            return
        plan, up = dialed
        if config.mode == "yamux":
            alive = yield from self._ping(engine, up.session)
            if not alive:
                return
        else:
            engine.set_plan(plan)
        yield from self._fetch_target(engine)

    # ------------------------------------------------------------ an endpoint

    def _endpoint_row(self, endpoint: Configuration, ok: bool | None, what: str) -> Row:
        config = self._config
        subject = f"{endpoint.target or config.server.host}:{endpoint.port or config.server.port}"
        return Row(layer="address", subject=subject, ok=ok, what=what, decides=False)

    def _reach(
        self, engine: _native.Engine, answers: _Answers, used: Configuration | None
    ) -> Generator[Row, None, tuple[_native.DialPlan, _native.SessionUp] | None]:
        """Its addresses, TCP, and the dial."""
        config = self._config
        addresses, problem = answers.addresses(used)
        name = answers.name(used) or config.server.host
        if not addresses:
            yield self._failed(problem, "address" if answers.working else "resolver", name)
            return None
        yield Row(layer="address", subject=name, ok=True, what=", ".join(addresses), advice=None)
        port = (used.port if used else None) or config.server.port
        reached = yield from self._connect(addresses, port)
        if not reached:
            return None
        if not self._hello_shown:
            self._hello_shown = True
            yield self._fingerprint_row(engine, used)
        return (yield from self._dial(engine, used, reached, port))

    # ------------------------------------------------------------ TCP

    def _connect(self, addresses: tuple[str, ...], port: int) -> Generator[Row, None, tuple[str, ...]]:
        """Connects to every address at once, and returns those that answered."""
        outcomes: dict[str, tuple[float, OSError | None]] = {}

        def connect(address: str) -> None:
            started = time.monotonic()
            error = None
            try:
                socket.create_connection((address, port), TCP_TIMEOUT).close()
            except OSError as caught:
                error = caught
            outcomes[address] = ((time.monotonic() - started) * 1000, error)

        threads = [threading.Thread(target=connect, args=(address,), daemon=True) for address in addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TCP_TIMEOUT + 1)
        reached = tuple(address for address in addresses if address in outcomes and outcomes[address][1] is None)
        for address in addresses:
            ms, error = outcomes.get(address, (TCP_TIMEOUT * 1000, TimeoutError()))
            subject = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            if error is None:
                yield Row(layer="tcp", subject=subject, ok=True, ms=ms, what="connected", decides=False)
                continue
            problem = _connect_error(subject, error)
            if reached:
                yield _row(problem, "tcp", subject, ms=ms, decides=False)
            else:
                yield self._failed(problem, "tcp", subject, ms=ms)
        return reached

    # ------------------------------------------------------------ TLS, ECH, certificate, WebSocket, token

    def _plan(
        self, used: Configuration | None, addresses: tuple[str, ...], port: int, *, profile: str | None = None
    ) -> _native.DialPlan:
        config = self._config
        return _native.DialPlan(
            server_name=config.server.host,
            port=port,
            authority_port=config.server.port,
            path=config.server.path,
            token=config.token,
            addresses=addresses,
            ech=used.configs if used else None,
            profile=profile or config.profile,
            alpn=config.alpn,
            h2_known=self._store.is_h2_known(self._server),
            mode=config.mode,
        )

    def _dial(
        self, engine: _native.Engine, used: Configuration | None, addresses: tuple[str, ...], port: int
    ) -> Generator[Row, None, tuple[_native.DialPlan, _native.SessionUp] | None]:
        dialed = self._await_dial(engine, used, addresses, port)
        up = dialed.outcome
        if isinstance(up, TunnelError):
            yield from self._dial_failed(up, dialed)
            if up.code in _MAYBE_BLOCKED and self.error is not None:
                yield from self._other_profiles(engine, used, addresses, port)
            return None
        host = self._config.server.host
        protocol = f", {up.alpn}" if up.alpn else ""
        resumed = ", resumed" if up.resumed else ""
        hello = f"{up.profile}, {up.hello} hello"
        yield Row(
            layer="tls",
            subject=up.address,
            ok=True,
            ms=up.tls_ms,
            what=f"TLS 1.3, {up.cipher}, {up.group}{protocol}{resumed}; {hello}",
        )
        if up.ech == "accepted":
            yield Row(layer="ech", subject=host, ok=True, what=f"{_accepted(dialed)}; the network saw {up.public_name}")
        else:
            yield Row(layer="ech", subject=host, ok=None, what="off (--no-ech): the network saw the name")
        yield Row(layer="certificate", subject=host, ok=True, what=f"valid for {host}")
        # The first word is the version of what our own server announces.
        features = f"; the server offers {', '.join(up.features[1:])}" if up.features else ""
        yield Row(
            layer="websocket", subject=self._config.server.path, ok=True, ms=up.websocket_ms, what=f"open{features}"
        )
        if self._config.token is None:
            yield Row(layer="token", subject="none", ok=None, what="no token was sent")
        else:
            yield Row(layer="token", subject="--token", ok=True, what="accepted")
        return dialed.plan, up

    def _dial_failed(self, error: TunnelError, dialed: _Dialed) -> Iterator[Row]:
        """The layers below the one that failed worked, those above were not reached."""
        host = self._config.server.host
        failing: Layer = next((layer for layer in _DIAL_LAYERS if layer == error.layer), "tls")
        for layer in _DIAL_LAYERS[: _DIAL_LAYERS.index(failing)]:
            if layer == "ech" and not self._config.ech:
                yield Row(layer=layer, subject=host, ok=None, what="off (--no-ech): the network saw the name")
            elif layer == "ech" and dialed.ech_rejected and dialed.used is not None:
                # By the certificate that failed the server was to prove that it may say so.
                what = f"rejected: the configuration {_source(dialed.used)}"
                yield Row(layer=layer, subject=host, ok=None, what=what)
            elif layer == "ech":
                yield Row(layer=layer, subject=host, ok=True, what=_accepted(dialed))
            else:
                yield Row(layer=layer, subject=host, ok=True, what=_WORKED.get(layer, "worked"))
        yield self._failed(error, failing, host)

    def _other_profiles(
        self, engine: _native.Engine, used: Configuration | None, addresses: tuple[str, ...], port: int
    ) -> Iterator[Row]:
        """Whether it is the hello that does not get through."""
        for profile in _native.PROFILES:
            if profile == self._config.profile:
                continue
            outcome = self._await_dial(engine, used, addresses, port, profile=profile).outcome
            through = not isinstance(outcome, TunnelError) or outcome.code not in _MAYBE_BLOCKED
            yield Row(
                layer="tls",
                subject=f"--profile {profile}",
                ok=through,
                what="gets through" if through else f"the same: {cast('TunnelError', outcome).message}",
                advice=f"use --profile {profile}" if through else None,
                decides=False,
            )

    def _await_dial(
        self,
        engine: _native.Engine,
        used: Configuration | None,
        addresses: tuple[str, ...],
        port: int,
        *,
        profile: str | None = None,
    ) -> _Dialed:
        rejected: Configuration | None = None

        def ended(outcome: _native.SessionUp | TunnelError, *, ech_rejected: bool = False) -> _Dialed:
            # Later connections begin with what was learned.
            plan = self._plan(used, addresses, port, profile=profile)
            return _Dialed(plan, outcome, rejected, used, ech_rejected)

        number = engine.dial(self._plan(used, addresses, port, profile=profile))
        for event in _events(engine, DIAL_TIMEOUT):
            if isinstance(event, _native.SessionUp) and event.dial == number:
                return ended(event)
            if isinstance(event, _native.DialFailed) and event.dial == number:
                return ended(from_failure(event.failure), ech_rejected=event.failure.ech_rejected)
            if isinstance(event, _native.EchLearned) and used is not None:
                rejected = rejected or used
                used = self._store.learn(self._server, event.configs, used=used)
            elif isinstance(event, _native.H2Chosen):
                self._store.remember_h2(self._server)
        return ended(
            SessionError(f"{self._server}: the dial had no end within {DIAL_TIMEOUT:.0f} s", code="tls-timeout")
        )

    def _fingerprint_row(self, engine: _native.Engine, used: Configuration | None) -> Row:
        """What the hello looks like, taken from one that goes to a port of our own on this machine."""
        profile = self._config.profile
        try:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.settimeout(TCP_TIMEOUT)
                engine.dial(self._plan(used, ("127.0.0.1",), listener.getsockname()[1]))
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(TCP_TIMEOUT)
                    hello = ClientHello.parse(_first_record(peer))
        except (OSError, ValueError) as error:
            return Row(layer="tls", subject=profile, ok=None, what=f"the hello could not be looked at: {error}")
        return Row(layer="tls", subject=profile, ok=None, what=f"JA4 {hello.ja4}, JA3 {hello.ja3}", decides=False)

    # ------------------------------------------------------------ yamux, target

    def _ping(self, engine: _native.Engine, session: int) -> Generator[Row, None, bool]:
        engine.probe()
        deadline = time.monotonic() + PING_TIMEOUT
        while time.monotonic() < deadline:
            for found in engine.snapshot().sessions:
                if found.session == session and found.rtt_ms is not None:
                    yield Row(layer="yamux", subject="ping", ok=True, ms=found.rtt_ms, what="answered")
                    return True
            event = engine.next_event(0.02)
            if isinstance(event, _native.SessionLost) and event.session == session:
                yield self._failed(from_failure(event.failure), "yamux", "ping")
                return False
        message = f"no answer to a ping within {PING_TIMEOUT:.0f} s"
        yield self._failed(SessionError(message, code="yamux-ping-timeout"), "yamux", "ping")
        return False

    def _fetch_target(self, engine: _native.Engine) -> Iterator[Row]:
        target = self._target
        started = time.monotonic()
        try:
            descriptor = engine.open_stream(target.host, target.port, STREAM_TIMEOUT)
            with socket.socket(fileno=descriptor) as raw:
                raw.settimeout(STREAM_TIMEOUT)
                with target.secured(raw, self._config) as stream:
                    stream.sendall(target.request())
                    first = stream.recv(65536)
                    ms = (time.monotonic() - started) * 1000
                    if not first:
                        raise TargetError(f"{target}: the stream ended before an answer came", code="target-failed")
                    status = first.split(b"\r\n", 1)[0][:60].decode("ascii", "replace")
                    yield Row(layer="target", subject=str(target), ok=True, ms=ms, what=f"first byte: {status}")
                    yield _sample(stream, len(first), time.monotonic())
        except TunnelError as error:
            yield self._failed(error, "target", str(target))
        except TimeoutError:
            message = f"{target}: no answer within {STREAM_TIMEOUT:.0f} s"
            yield self._failed(TargetError(message, code="target-timeout"), "target", str(target))
        except OSError as error:
            # With an optimistic server a target that cannot be reached is seen as the stream's end.
            message = f"{target}: {error.strerror or error}"
            yield self._failed(TargetError(message, code="target-failed"), "target", str(target))

    def _failed(self, error: TunnelError, layer: Layer, subject: str, *, ms: float | None = None) -> Row:
        decides = not (self._others_follow and error.code in _NEXT_ENDPOINT)
        if decides and self.error is None:
            self.error = error
        return _row(error, layer, subject, ms=ms, decides=decides)


# What is known of a layer of which nothing was reported, because a later one failed.
_WORKED: dict[Layer, str] = {
    "tls": "the handshake went through",
    "certificate": "accepted",
    "websocket": "the server answers HTTP",
}


class _Answers:
    """What the resolvers say, each by itself."""

    def __init__(self, engine: _native.Engine, config: ClientConfig, store: EchStore) -> None:
        self._engine = engine
        self._config = config
        self._store = store
        self._server = config.server.authority
        self._found: Configuration | None = None
        self._problem: TunnelError | None = None
        self._address_problem: TunnelError | None = None
        self.working: list[Resolver] = []
        self.origin = config.ech_domain or config.server.host
        port = 443 if config.ech_domain else config.server.port
        self._port = port
        self._question = (
            doh.Question(doh.https_name(self.origin, port), "HTTPS")
            if self._needs_records
            else doh.Question(config.server.host, "A")
        )

    @property
    def needed(self) -> bool:
        return self._needs_records or self.name(None) is not None

    @property
    def _needs_records(self) -> bool:
        return self._config.ech and self._config.ech_config is None

    def name(self, used: Configuration | None) -> str | None:
        """The name whose addresses are looked up, if any."""
        host = self._config.server.host
        if self._config.server_ips or _is_address(host):
            return None
        return (used.target if used else None) or host

    def ask(self) -> Iterator[Row]:
        """A row for each resolver; what they found is kept."""
        outcomes = self._exchange(list(self._config.resolvers), self._question)
        failed = [outcome for outcome in outcomes.values() if isinstance(outcome, TunnelError)]
        if len(failed) == len(outcomes) > 1:
            reasons = "; ".join(error.message for error in failed)
            self._problem = ResolverError(f"no resolver answers for {self._question}: {reasons}")
        for resolver in self._config.resolvers:
            outcome = outcomes[resolver.url]
            if isinstance(outcome, TunnelError):
                self._problem = self._problem or outcome
                yield _row(outcome, "resolver", resolver.host, decides=False)
                continue
            answer, fetched, age = outcome
            self.working.append(resolver)
            seen = f"; the answer is {age} s old" if age else ""
            carrier = f"{fetched.http_version}{seen}"
            what, advice, good = self._judge(resolver, answer)
            yield Row(
                layer="resolver",
                subject=resolver.host,
                ok=good,
                ms=fetched.ms,
                what=f"{what}; {carrier}",
                advice=advice,
                decides=False,
            )

    def _judge(self, resolver: Resolver, answer: doh.HttpsAnswer | doh.AddressAnswer) -> tuple[str, str | None, bool]:
        steps = 0
        while isinstance(answer, doh.HttpsAnswer) and answer.alias is not None and steps < doh.ALIAS_LIMIT:
            steps += 1
            question = doh.Question(answer.alias, "HTTPS")
            outcome = self._exchange([resolver], question, steps=answer.steps)[resolver.url]
            if isinstance(outcome, TunnelError):
                self._problem = self._problem or outcome
                return outcome.message, outcome.advice, False
            answer = outcome[0]
        if isinstance(answer, doh.AddressAnswer):
            if answer.addresses:
                return f"{answer.name}: {', '.join(answer.addresses)}, for {answer.ttl} s", None, True
            return answer.why or "no address", None, False
        endpoint = answer.with_ech()
        if endpoint is None or endpoint.ech is None:
            why = answer.why or f"the HTTPS record of {answer.name} has no ech="
            error = EchError(f"no ECH configuration for {self.origin}: {why}", code="ech-no-config")
            self._problem = error
            return why, error.advice, False
        try:
            entries = _native.parse_ech_config_list(endpoint.ech)
        except ValueError as bad:
            self._problem = EchError(f"the ECH configuration of {self.origin} cannot be used: {bad}")
            return f"the ech= value cannot be used: {bad}", self._problem.advice, False
        if self._found is None:
            self._found = Configuration.of_record(
                answer,
                self.origin,
                own=self._config.ech_domain is None,
                now=time.time(),
                is_usable=_is_usable,
            )
        public = next((entry.public_name for entry in entries if entry.public_name), "an unknown version")
        return f"ECH configuration for {answer.ttl} s, public name {public}", None, True

    def configuration(self) -> tuple[Configuration | None, TunnelError]:
        """What to dial with, and the problem if there is none (or only an old one)."""
        config = self._config
        problem = self._problem or ResolverError("no resolver answered")
        known = self._store.configuration(self._server)
        if config.ech_config is not None:
            if known is not None and known.source == "retry" and known.rejected == config.ech_config:
                return known, problem
            given = Configuration(
                configs=config.ech_config, source="option", origin=config.server.host, fetched_at=0.0, ttl=0.0
            )
            return given, problem
        if self._found is not None:
            return self._store.store(self._server, self._found), problem
        if known is not None and (known.source == "retry" or known.origin == self.origin):
            return known, problem
        if config.ech_bootstrap is not None:
            _, configs = _native.generate_ech_key(secrets.randbelow(256), config.ech_bootstrap)
            made_up = Configuration(
                configs=configs, source="bootstrap", origin=config.ech_bootstrap, fetched_at=0.0, ttl=0.0
            )
            return made_up, problem
        return None, problem

    def addresses(self, used: Configuration | None) -> tuple[tuple[str, ...], TunnelError]:
        """Where the server is."""
        config = self._config
        name = self.name(used)
        problem: TunnelError = self._problem or ResolverError("no resolver answered")
        if name is None:
            return config.server_ips or (config.server.host,), problem
        found: list[str] = []
        ttl = doh.TTL_LIMIT
        for resolver in self.working[:2]:
            kinds: tuple[doh.Type, ...] = ("AAAA", "A")
            for kind in kinds:
                question = doh.Question(name, kind)
                outcome = self._exchange([resolver], question)[resolver.url]
                if isinstance(outcome, TunnelError):
                    problem = outcome
                elif isinstance(outcome[0], doh.AddressAnswer) and outcome[0].addresses:
                    found += outcome[0].addresses
                    ttl = min(ttl, outcome[0].ttl)
                elif isinstance(outcome[0], doh.AddressAnswer):
                    why = outcome[0].why
                    problem = ResolverError(f"no address for {name}: {why}", code="resolver-no-address")
            if found:
                self._store.store_addresses(name, Addresses(tuple(found), time.time(), float(ttl)))
                return tuple(dict.fromkeys(found)), problem
        known = self._store.addresses(name)
        hints = used.hints if used else ()
        return (known.addresses if known else ()) or hints, problem

    def _exchange(
        self, resolvers: list[Resolver], question: doh.Question, *, steps: int = 0
    ) -> dict[str, TunnelError | tuple[doh.HttpsAnswer | doh.AddressAnswer, _native.Fetched, int]]:
        """Asks all of them at once; by POST, and by GET where that is not wanted."""
        outcomes: dict[str, Any] = {}
        running = {self._start(resolver, question, "POST"): (resolver, "POST") for resolver in resolvers}
        for event in _events(self._engine, 15.0):
            if isinstance(event, _native.Fetched | _native.FetchFailed) and event.fetch in running:
                resolver, method = running.pop(event.fetch)
                if isinstance(event, _native.FetchFailed):
                    outcomes[resolver.url] = from_failure(event.failure, resolver=resolver.host)
                elif event.status in (400, 404, 405, 415, 501) and method == "POST":
                    running[self._start(resolver, question, "GET")] = (resolver, "GET")
                else:
                    outcomes[resolver.url] = self._read(resolver, question, event, steps)
            if not running:
                break
        for resolver, _ in running.values():
            outcomes[resolver.url] = ResolverError(f"{resolver.host}: no answer in time", code="resolver-failed")
        return outcomes

    def _start(self, resolver: Resolver, question: doh.Question, method: Literal["GET", "POST"]) -> int:
        path, body = doh.request(resolver.path, doh.query(question), method)
        return self._engine.fetch(
            _native.FetchPlan(
                server_name=resolver.host,
                port=resolver.port,
                addresses=resolver.addresses,
                path=path,
                method=method,
                body=body,
                profile=self._config.profile,
            )
        )

    def _read(self, resolver: Resolver, question: doh.Question, event: _native.Fetched, steps: int) -> Any:
        try:
            age = doh.read_response(event.status, event.headers, event.body)
            if question.type == "HTTPS":
                return doh.read_https_answer(event.body, question, self._port, steps=steps), event, age
            return doh.read_address_answer(event.body, question), event, age
        except doh.AnswerError as error:
            return ResolverError(f"{resolver.host}: {error.message}", code=error.code)


class _Target:
    """What the stream at the end is opened to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("http", "https") or not parts.hostname or (port is None and ":" in parts.netloc[-6:]):
            raise ConfigError(f"{url!r} is no http or https URL", option="--target", advice=f"like {DEFAULT_TARGET}")
        self.tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.tls else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not f"{self._authority}{self._path}".isascii() or any(c.isspace() for c in self._path):
            raise ConfigError(f"{url!r} is no URL", option="--target", advice="write it as browsers send it")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def request(self) -> bytes:
        lines = (f"GET {self._path} HTTP/1.1", f"Host: {self._authority}", "Accept: */*", "Connection: close", "", "")
        return "\r\n".join(lines).encode("ascii")

    def secured(self, raw: socket.socket, config: ClientConfig) -> contextlib.AbstractContextManager[socket.socket]:
        if not self.tls:
            return contextlib.nullcontext(raw)
        import ssl

        context = ssl.create_default_context()
        if config.ca_pem is not None:
            context.load_verify_locations(cadata=config.ca_pem.decode("ascii", "ignore"))
        return context.wrap_socket(raw, server_hostname=self.host)


def _sample(stream: socket.socket, received: int, started: float) -> Row:
    """The rate at which the rest of the answer comes."""
    elapsed = 0.0
    while received < SAMPLE_BYTES and elapsed < SAMPLE_SECONDS:
        data = stream.recv(262144)
        elapsed = time.monotonic() - started
        if not data:
            break
        received += len(data)
    if received < _SAMPLE_LEAST or elapsed <= 0:
        return Row(
            layer="target",
            subject="throughput",
            ok=None,
            what=f"{received} bytes are too few to tell",
            advice="give a larger file with --target URL",
            decides=False,
        )
    rate = received / elapsed / 1e6
    what = f"{received / 1e6:.1f} MB in {elapsed:.2f} s: {rate:.1f} MB/s"
    return Row(layer="target", subject="throughput", ok=True, ms=elapsed * 1000, what=what, decides=False)


def _events(engine: _native.Engine, timeout: float) -> Iterator[_native.Event]:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        event = engine.next_event(left)
        if event is not None:
            yield event


def _row(error: TunnelError, layer: Layer, subject: str, *, ms: float | None = None, decides: bool = True) -> Row:
    return Row(
        layer=layer,
        subject=subject,
        ok=False,
        ms=ms,
        what=error.message,
        advice=error.advice,
        code=error.code,
        detail=error.detail,
        decides=decides,
    )


def _configuration_row(used: Configuration, origin: str, problem: TunnelError) -> Row:
    late = used.source in ("dns", "retry") and used.is_stale(time.time())
    return Row(
        layer="ech",
        subject=origin,
        ok=True,
        what=f"configuration {_source(used)}, public name {_public_name(used)}",
        advice=problem.advice if late else None,
        decides=False,
    )


def _accepted(dialed: _Dialed) -> str:
    if dialed.rejected is None:
        return "accepted"
    return f"accepted with new keys from the server, which rejected the configuration {_source(dialed.rejected)}"


def _source(used: Configuration) -> str:
    """Where a configuration came from, and how old it is."""
    age = max(0, time.time() - used.fetched_at)
    late = " (stale, from the cache)" if used.is_stale(time.time()) else ""
    return {
        "dns": f"from the HTTPS record of {used.origin}, {age:.0f} s old{late}",
        "retry": f"handed over by the server {age:.0f} s ago{late}",
        "bootstrap": "made up (--ech-bootstrap): the server is to reject it and hand over its own",
    }.get(used.source, "given by --ech-config")


def _public_name(used: Configuration) -> str | None:
    with contextlib.suppress(ValueError):
        entries = _native.parse_ech_config_list(used.configs)
        return next((entry.public_name for entry in entries if entry.public_name), None)
    return None


def _is_usable(configs: bytes) -> bool:
    try:
        entries = _native.parse_ech_config_list(configs)
    except ValueError:
        return False
    return any(entry.public_name for entry in entries)


def _connect_error(subject: str, error: OSError) -> ConnectError:
    if isinstance(error, TimeoutError):
        return ConnectError(f"connecting to {subject}: no answer within {TCP_TIMEOUT:.0f} s", code="tcp-timeout")
    if isinstance(error, ConnectionRefusedError):
        return ConnectError(f"connecting to {subject}: refused", code="tcp-refused")
    if isinstance(error, ConnectionResetError):
        return ConnectError(f"connecting to {subject}: reset", code="tcp-reset")
    return ConnectError(f"connecting to {subject}: {error.strerror or error}", code="tcp-unreachable")


def _first_record(peer: socket.socket) -> bytes:
    data = b""
    while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
        more = peer.recv(65536)
        if not more:
            raise ValueError("the hello was cut")
        data += more
    return data


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
