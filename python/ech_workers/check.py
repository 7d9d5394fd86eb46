"""What works and what does not, layer by layer: resolvers, address, TCP, TLS with ECH, certificate, WebSocket, token,
yamux, a target. Each finding is a row with what was seen, how long it took, and what to try.

It follows what the tunnel itself does: a supervisor runs as it does for the proxy, with the same knowledge, the same race
of resolvers and the same rules, and its steps are put into words here. So nothing is tried that the tunnel would not do:
no name goes out in clear, and no plain DNS is asked.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from ech_workers import _native, doh
from ech_workers.candidate import dial_plan
from ech_workers.config import authority
from ech_workers.ech import EchStore, public_name
from ech_workers.engine import engine_configuration
from ech_workers.errors import (
    Cause,
    ConnectError,
    SessionTimeout,
    TargetError,
    TlsTimeout,
    TunnelError,
    connect_error,
    from_failure,
)
from ech_workers.finding import PROBE, Layer, Row, origin, probe_row, resolver_row, row, sample_row, source, stalled
from ech_workers.fingerprint import ClientHello, first_record
from ech_workers.probes import ECHO
from ech_workers.steps import Asked, Dialed, Dialing, Exchanged, Failed, Learned, Passed, Settled, Step
from ech_workers.stream import open_stream
from ech_workers.supervisor import Supervisor
from ech_workers.target import DEFAULT_TARGET, STREAM_TIMEOUT, FirstByte, Target
from ech_workers.timing import Timing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ech_workers.candidate import Candidate
    from ech_workers.config import ClientConfig, UpstreamConfig
    from ech_workers.ech import Configuration

__all__ = ["DEFAULT_TARGET", "Check", "Row"]

ATTEMPT_TIMEOUT = 60.0
"""Seconds without any step; every part of an attempt has a shorter limit of its own."""

TCP_TIMEOUT = 5.0
PING_TIMEOUT, PING_AGAIN, PROBE_TIMEOUT = 10.0, 2.0, 70.0

# As they follow one another in a dial.
_DIAL_LAYERS: tuple[Layer, ...] = ("tls", "ech", "certificate", "websocket", "token")

# Failures behind which something on the way may stand that knows the hello.
_MAYBE_BLOCKED = frozenset({"tls-reset", "tls-timeout", "tls-alert"})


class Check:
    """One run through all layers. ``rows`` yields the findings as they come; ``exit_code`` is right after the last."""

    def __init__(self, config: ClientConfig, *, target: str = DEFAULT_TARGET) -> None:
        """target: an http:// or https:// URL; a large file there makes the throughput sample meaningful. Raises ConfigError."""
        self._config = config
        self._target = Target(target)
        self.error: Cause | None = None
        """The first decisive failure; with several servers, None if one of them works."""

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else self.error.exit_code

    def rows(self) -> Iterator[Row]:
        """Tries everything, in order, as far as it goes."""
        config = self._config
        runs = []
        for upstream in config.upstreams:
            alone = msgspec.structs.replace(config, server=upstream.server, servers=(upstream,), sessions=1)
            runs.append(_Run(alone, upstream, self._target))
            yield from runs[-1].rows()
        errors = [run.error for run in runs]
        self.error = None if None in errors else errors[0]


class _Run:
    """The way to one server."""

    def __init__(self, config: ClientConfig, server: UpstreamConfig, target: Target) -> None:
        self._config = config
        self._server = server
        self._host = server.server.host
        self._target = target
        self._store = EchStore(config.cache_dir)
        self._steps: queue.SimpleQueue[Step | _native.Event] = queue.SimpleQueue()
        self._echoed: queue.SimpleQueue[_native.Echoed] = queue.SimpleQueue()
        self._held: list[Step | _native.Event] = []
        self._outstanding = 0
        self._needs_records = server.ech and server.ech_config is None
        # Of the dial that is under way.
        self._candidate: Candidate | None = None
        self._rejected: Configuration | None = None
        self._refused: list[tuple[ConnectError, str, float]] = []
        self._endpoints: list[tuple[str | None, int | None]] = []
        self._hello_shown = False
        self.error: Cause | None = None

    def rows(self) -> Iterator[Row]:
        config = self._config
        engine = _native.Engine(engine_configuration(config), log_level=40)
        supervisor = Supervisor(
            config,
            engine,
            self._store,
            on_event=self._note,
            trace=self._steps.put,
            refresh=True,
            watch_network=True,
            # Every resolver is asked at once: each one's answer is of interest.
            timing=Timing(head_start=0.0, probe_first=True),
        )
        thread = threading.Thread(target=supervisor.run, name="ech-workers-check", daemon=True)
        thread.start()
        try:
            up = yield from self._reach(engine)
            if up is None or (self._server.mode == "yamux" and not (yield from self._ping(engine, up.session))):
                return
            if ECHO not in up.features or (yield from self._probe()):
                yield from self._fetch_target(engine)
        finally:
            supervisor.stop()
            thread.join()
            engine.close()

    # ------------------------------------------------------------ the steps

    def _note(self, event: _native.Event) -> None:
        """Takes an event, in the supervisor's thread. The probe may end before anybody waits for it."""
        if isinstance(event, _native.Echoed):
            if event.outcome != "busy":
                self._echoed.put(event)
        else:
            self._steps.put(event)

    def _next(self) -> Step | _native.Event | None:
        """The next step or event. Those of dials are held back until every resolver has had its say."""
        while not self._held or self._outstanding:
            try:
                step = self._steps.get(timeout=ATTEMPT_TIMEOUT)
            except queue.Empty:
                return None
            if not isinstance(step, Asked | Exchanged):
                self._held.append(step)
                continue
            if self._is_shown(step.question):
                self._outstanding += 1 if isinstance(step, Asked) else -1
            return step
        return self._held.pop(0)

    def _is_shown(self, question: doh.Question) -> bool:
        """Whether each resolver's answer is a row; of the others the race's outcome is enough."""
        return question.type == ("HTTPS" if self._needs_records else "A")

    def _reach(self, engine: _native.Engine) -> Generator[Row, None, _native.SessionUp | None]:
        while (step := self._next()) is not None:
            match step:
                case Exchanged():
                    if self._is_shown(step.question):
                        yield resolver_row(step)
                case Passed():
                    yield from self._endpoint_rows(step.used)
                    name = (step.used.target if step.used else None) or self._host
                    yield row(step.cause, "address", name, decides=False)
                case Dialing():
                    yield from self._dialing(engine, step.candidate)
                case Learned():
                    self._rejected = self._rejected or step.rejected
                case Dialed():
                    yield from self._dialed(step.up)
                    return step.up
                case Failed():
                    yield from self._failed(engine, step)
                    if step.is_last:
                        return None
                case Settled():
                    # Nothing was dialled: there is nothing to dial by.
                    layer: Layer = "ech" if step.cause.layer == "ech" else "resolver"
                    if step.cause.code.startswith("resolver-no-"):
                        layer = "address"
                    yield self._ends(step.cause, layer, self._server.ech_domain or self._host)
                    return None
                case _:
                    pass
        error = TlsTimeout(f"{self._server.name}: nothing happened for {ATTEMPT_TIMEOUT:.0f} s", code="tls-timeout")
        yield self._ends(error.cause, "tls", self._host)
        return None

    def _dialing(self, engine: _native.Engine, candidate: Candidate) -> Iterator[Row]:
        """A dial has started: by which configuration, and to where."""
        before, self._candidate = self._candidate, candidate
        used = candidate.used
        if used is not None and (before is None or before.used is None or before.used.configs != used.configs):
            what = f"configuration {source(used)}, public name {public_name(used.configs)}"
            yield Row(layer="ech", subject=origin(used, self._host), ok=True, what=what, decides=False)
        yield from self._endpoint_rows(used)
        name = (used.target if used else None) or self._host
        yield Row(layer="address", subject=name, ok=True, what=", ".join(candidate.addresses))
        yield from self._connect(candidate)
        if not self._hello_shown and not self._refused:
            self._hello_shown = True
            yield self._fingerprint_row(engine, candidate)

    def _endpoint_rows(self, used: Configuration | None, *, is_used: bool = False) -> Iterator[Row]:
        if used is None or not used.others:
            return
        if not self._endpoints:
            self._endpoints = [(used.target, used.port), *((end.target, end.port) for end in used.others)]
        place = (used.target, used.port)
        number = self._endpoints.index(place) + 1 if place in self._endpoints else len(self._endpoints)
        what = f"endpoint {number} of {len(self._endpoints)}"
        what += " is used" if is_used else f", public name {public_name(used.configs)}"
        subject = f"{used.target or self._host}:{used.port or self._server.server.port}"
        yield Row(layer="address", subject=subject, ok=True if is_used else None, what=what, decides=False)

    # ------------------------------------------------------------ TCP

    def _connect(self, candidate: Candidate) -> Iterator[Row]:
        """Connects to every address at once, beside the dial."""
        outcomes: dict[str, tuple[float, OSError | None]] = {}

        def connect(address: str) -> None:
            started = time.monotonic()
            error = None
            try:
                socket.create_connection((address, candidate.port), TCP_TIMEOUT).close()
            except OSError as caught:
                error = caught
            outcomes[address] = ((time.monotonic() - started) * 1000, error)

        threads = [threading.Thread(target=connect, args=(address,), daemon=True) for address in candidate.addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TCP_TIMEOUT + 1)
        refused = []
        for address in candidate.addresses:
            ms, error = outcomes.get(address, (TCP_TIMEOUT * 1000, TimeoutError()))
            subject = authority(address, candidate.port)
            if error is None:
                yield Row(layer="tcp", subject=subject, ok=True, ms=ms, what="connected", decides=False)
            else:
                refused.append((connect_error(subject, error, TCP_TIMEOUT), subject, ms))
        # When every address refuses, it depends on how the dial ends what these rows mean.
        self._refused = refused if len(refused) == len(candidate.addresses) else []
        for problem, subject, ms in refused[len(self._refused) :]:
            yield row(problem.cause, "tcp", subject, ms=ms, decides=False)

    def _fingerprint_row(self, engine: _native.Engine, candidate: Candidate) -> Row:
        """What the hello looks like, taken from one that goes to a port of our own on this machine."""
        profile = self._server.profile
        try:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.settimeout(TCP_TIMEOUT)
                to_us = msgspec.structs.replace(candidate, addresses=("127.0.0.1",), port=listener.getsockname()[1])
                engine.dial(dial_plan(self._server, to_us, h2_known=self._is_h2_known))
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(TCP_TIMEOUT)
                    hello = ClientHello.parse(first_record(peer))
        except (OSError, ValueError) as error:
            return Row(layer="tls", subject=profile, ok=None, what=f"the hello could not be looked at: {error}")
        return Row(layer="tls", subject=profile, ok=None, what=f"JA4 {hello.ja4}, JA3 {hello.ja3}", decides=False)

    @property
    def _is_h2_known(self) -> bool:
        return self._store.is_h2_known(self._server.server.authority)

    # ------------------------------------------------------------ TLS, ECH, certificate, WebSocket, token

    def _dialed(self, up: _native.SessionUp) -> Iterator[Row]:
        for problem, subject, ms in self._refused:
            yield row(problem.cause, "tcp", subject, ms=ms, decides=False)
        protocol = f", {up.alpn}" if up.alpn else ""
        resumed = ", resumed" if up.resumed else ""
        hello = f"{up.profile}, {up.hello} hello"
        what = f"TLS 1.3, {up.cipher}, {up.group}{protocol}{resumed}; {hello}"
        yield Row(layer="tls", subject=up.address, ok=True, ms=up.tls_ms, what=what)
        if up.ech == "accepted":
            yield self._accepted_row(f"; the network saw {up.public_name}")
        else:
            yield self._ech_off_row()
        yield Row(layer="certificate", subject=self._host, ok=True, what=f"valid for {self._host}")
        # The first word is the version of what our own server announces.
        offered = [feature for feature in up.features[1:] if feature != "worker"]
        features = "; a Cloudflare Worker" if "worker" in up.features else ""
        features += f"; the server offers {', '.join(offered)}" if offered else ""
        path = self._server.server.path
        yield Row(layer="websocket", subject=path, ok=True, ms=up.websocket_ms, what=f"open{features}")
        if self._server.token is None:
            yield Row(layer="token", subject="none", ok=None, what="no token was sent")
        else:
            yield Row(layer="token", subject="--token", ok=True, what="accepted")
        yield from self._endpoint_rows(self._candidate.used if self._candidate else None, is_used=True)

    def _failed(self, engine: _native.Engine, step: Failed) -> Iterator[Row]:
        """The layers below the one that failed worked, those above were not reached."""
        cause = step.cause
        if cause.layer == "tcp" and self._refused:
            for problem, subject, ms in self._refused:
                if step.is_last:
                    yield self._ends(problem.cause, "tcp", subject, ms=ms)
                else:
                    yield row(problem.cause, "tcp", subject, ms=ms, decides=False)
            return
        failing: Layer = next((layer for layer in _DIAL_LAYERS if layer == cause.layer), "tls")
        used = self._candidate.used if self._candidate else None
        for layer in _DIAL_LAYERS[: _DIAL_LAYERS.index(failing)]:
            if layer == "ech" and not self._server.ech:
                yield self._ech_off_row()
            elif layer == "ech" and step.ech_rejected and used is not None:
                # By the certificate that failed the server was to prove that it may say so.
                what = f"rejected: the configuration {source(used)}"
                yield Row(layer=layer, subject=self._host, ok=None, what=what)
            elif layer == "ech":
                yield self._accepted_row()
            else:
                yield Row(layer=layer, subject=self._host, ok=True, what=_WORKED.get(layer, "worked"))
        if not step.is_last:
            yield row(cause, failing, self._host, decides=False)
            return
        yield self._ends(cause, failing, self._host)
        if cause.code in _MAYBE_BLOCKED:
            yield from self._other_profiles(engine)

    def _accepted_row(self, more: str = "") -> Row:
        what = "accepted"
        if self._rejected is not None:
            what += f" with new keys from the server, which rejected the configuration {source(self._rejected)}"
        return Row(layer="ech", subject=self._host, ok=True, what=what + more)

    def _ech_off_row(self) -> Row:
        return Row(layer="ech", subject=self._host, ok=None, what="off (--no-ech): the network saw the name")

    def _other_profiles(self, engine: _native.Engine) -> Iterator[Row]:
        """Whether it is the hello that does not get through."""
        # The newest is the one that "firefox" stands for.
        used = self._server.profile if self._server.profile in _native.PROFILES else _native.PROFILES[-1]
        for profile in _native.PROFILES:
            if profile == used or self._candidate is None:
                continue
            plan = dial_plan(self._server, self._candidate, h2_known=self._is_h2_known, profile=profile)
            failure = self._await_dial(engine.dial(plan))
            through = failure is None or failure.code not in _MAYBE_BLOCKED
            yield Row(
                layer="tls",
                subject=f"--profile {profile}",
                ok=through,
                what="gets through" if through else f"the same: {failure.message if failure else ''}",
                advice=f"use --profile {profile}" if through else None,
                decides=False,
            )

    def _await_dial(self, number: int) -> TunnelError | None:
        """How a dial of our own ended: None if well."""
        while (step := self._next()) is not None:
            if isinstance(step, _native.SessionUp) and step.dial == number:
                return None
            if isinstance(step, _native.DialFailed) and step.dial == number:
                return from_failure(step.failure)
        return TlsTimeout("the dial had no end", code="tls-timeout")

    # ------------------------------------------------------------ yamux, target

    def _ping(self, engine: _native.Engine, session: int) -> Generator[Row, None, bool]:
        deadline = time.monotonic() + PING_TIMEOUT
        asked_at = -PING_AGAIN
        while time.monotonic() < deadline:
            if time.monotonic() - asked_at >= PING_AGAIN:
                asked_at = time.monotonic()
                engine.probe(session)
            for found in engine.snapshot().sessions:
                if found.session == session and found.rtt_ms is not None:
                    yield Row(layer="yamux", subject="ping", ok=True, ms=found.rtt_ms, what="answered")
                    return True
            try:
                event = self._steps.get(timeout=0.02)
            except queue.Empty:
                continue
            if isinstance(event, _native.SessionLost) and event.session == session:
                yield self._ends(from_failure(event.failure).cause, "yamux", "ping")
                return False
        message = f"no answer to a ping within {PING_TIMEOUT:.0f} s"
        yield self._ends(SessionTimeout(message, code="yamux-ping-timeout").cause, "yamux", "ping")
        return False

    def _probe(self) -> Generator[Row, None, bool]:
        """What comes of the exchange that the supervisor has with a server which announces that it can. False: it stopped."""
        layer: Layer = "websocket" if self._server.mode == "simple" else "yamux"
        event = None
        with contextlib.suppress(queue.Empty):
            event = self._echoed.get(timeout=PROBE_TIMEOUT)
        if event is not None and event.outcome == "stopped":
            yield self._ends(stalled(event.received).cause, layer, PROBE)
            return False
        yield probe_row(layer, event.ms if event is not None else None)
        return True

    def _fetch_target(self, engine: _native.Engine) -> Iterator[Row]:
        target = self._target
        started = time.monotonic()
        try:
            stream = open_stream(engine, target.host, target.port, STREAM_TIMEOUT)
            opened = (time.monotonic() - started) * 1000
            with stream as raw:
                for seen in target.fetch(raw, self._config.ca_pem):
                    if isinstance(seen, FirstByte):
                        what = f"first byte: {seen.status}"
                        yield Row(layer="target", subject=str(target), ok=True, ms=opened + seen.ms, what=what)
                    else:
                        yield sample_row(seen)
        except TunnelError as error:
            yield self._ends(error.cause, "target", str(target))
        except OSError as error:
            # With an optimistic server a target that cannot be reached is seen as the stream's end.
            message = f"{target}: {error.strerror or error}"
            yield self._ends(TargetError(message, code="target-failed").cause, "target", str(target))

    def _ends(self, cause: Cause, layer: Layer, subject: str, *, ms: float | None = None) -> Row:
        """What decides: it goes no further."""
        self.error = self.error or cause
        return row(cause, layer, subject, ms=ms)


# What is known of a layer of which nothing was reported, because a later one failed.
_WORKED: dict[Layer, str] = {
    "tls": "the handshake went through",
    "certificate": "accepted",
    "websocket": "the server answers HTTP",
}
