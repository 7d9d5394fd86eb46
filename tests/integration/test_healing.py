"""A tunnel that heals itself: keys that rotate, sessions that are replaced, a server that restarts; no request is lost."""

from __future__ import annotations

import base64
import concurrent.futures
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ech_workers import _native
from ech_workers.config import ClientConfig
from ech_workers.ech import EchStore
from ech_workers.readiness import wait_ready
from ech_workers.stream import open_stream
from ech_workers.supervisor import Supervisor
from ech_workers.timing import Timing
from harness.resolver import Resolver
from harness.tunnel import PATH, PUBLIC_NAME, RESOLVER_NAME, SERVER_NAME, TOKEN
from harness.waiting import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.authority import Authority


class Rig:
    """Both ends in this process: the server's keys and the client's clock in the test's hands."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.resolver = Resolver(authority.issue(RESOLVER_NAME), RESOLVER_NAME)
        self._certificates = [
            (issued.chain.read_bytes(), issued.key.read_bytes())
            for issued in (authority.issue(SERVER_NAME), authority.issue(PUBLIC_NAME))
        ]
        self._ids = itertools.cycle(range(256))
        pem, self.configs = self.new_key()
        self.server = self.serve(pem)
        self.port = self.server.address[1]
        self.publish(self.configs)
        self.engine = _native.Engine(
            _native.EngineConfiguration(ca_pem=[authority.path.read_bytes()], system_roots=False)
        )
        self.wall_offset = 0.0
        self.supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None

    def new_key(self) -> tuple[bytes, bytes]:
        return _native.generate_ech_key(next(self._ids), PUBLIC_NAME)

    def serve(self, pem: bytes, port: int = 0) -> _native.Server:
        return _native.Server(self.configuration(pem), host="127.0.0.1", port=port)

    def configuration(self, pem: bytes) -> _native.ServerConfiguration:
        return _native.ServerConfiguration(
            certificates=self._certificates,
            tokens=[(TOKEN, "the token")],
            path=PATH,
            ech_keys=[(pem, True)],
            allow_private_targets=True,
        )

    def publish(self, configs: bytes) -> None:
        self.resolver.add(SERVER_NAME, "A", "127.0.0.1")
        self.resolver.add_https(SERVER_NAME, self.port, base64.b64encode(configs).decode())

    def start(
        self,
        *,
        mode: str = "yamux",
        timing: Timing | None = None,
        bootstrap: str | None = None,
        cache: Path | None = None,
    ) -> Supervisor:
        config = ClientConfig.build(
            server=f"{SERVER_NAME}:{self.port}{PATH}",
            token=TOKEN,
            yamux=mode == "yamux",
            doh_server=self.resolver.url,
            doh_ip="127.0.0.1",
            server_ip="127.0.0.1",
            ech_bootstrap=bootstrap,
            listen=None,
            cache_dir="",
        )
        self.supervisor = Supervisor(
            config, self.engine, EchStore(cache), timing=timing, wall=lambda: time.time() + self.wall_offset
        )
        self._thread = threading.Thread(target=self.supervisor.run, daemon=True)
        self._thread.start()
        wait_ready(self.supervisor, 20)
        return self.supervisor

    def open(self, port: int) -> socket.socket:
        made = open_stream(self.engine, "127.0.0.1", port, 10.0)
        made.settimeout(10.0)
        return made

    def echoes(self, port: int) -> bool:
        with self.open(port) as stream:
            stream.sendall(b"hello")
            return stream.recv(5) == b"hello"

    def close(self) -> None:
        if self.supervisor is not None and self._thread is not None:
            self.supervisor.stop()
            self._thread.join(10)
        self.engine.close()
        self.server.close()
        self.resolver.stop()


@pytest.fixture
def rig(authority: Authority) -> Iterator[Rig]:
    made = Rig(authority)
    yield made
    made.close()


def every(seconds: float, work: Callable[[], object], until: threading.Event) -> threading.Thread:
    def repeat() -> None:
        while not until.wait(seconds):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("mode", ["simple", "yamux"])
def test_keys_that_rotate_under_load_lose_no_request(
    rig: Rig, targets: dict[str, int], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    timing = Timing(session_age=0.5)  # so that yamux dials often too
    supervisor = rig.start(mode=mode, timing=timing)
    rotations = itertools.count()

    def rotate() -> None:
        next(rotations)
        rig.server.apply(rig.configuration(rig.new_key()[0]))

    over = threading.Event()
    thread = every(0.3, rotate, over)
    with concurrent.futures.ThreadPoolExecutor(16) as pool, caplog.at_level("INFO", "ech_workers"):
        outcomes: list[bool] = []
        for _ in range(20):
            outcomes += pool.map(lambda _: rig.echoes(targets["echo"]), range(50))
            time.sleep(0.1)
    over.set()
    thread.join()
    assert outcomes == [True] * 1000
    assert next(rotations) >= 5
    assert rig.engine.snapshot().ech_retries >= 1
    assert sum("handed over" in record.getMessage() for record in caplog.records) == 1
    ech = supervisor.status().ech
    assert ech is not None
    assert ech.source == "retry"


def test_sessions_are_replaced_without_a_stream_noticing(rig: Rig, targets: dict[str, int]) -> None:
    supervisor = rig.start(timing=Timing(session_age=1.0))
    first = supervisor.status().sessions[0].session
    with rig.open(targets["echo"]) as long:
        deadline = time.monotonic() + 60
        seen: set[int] = set()
        while len(seen) < 4:
            assert time.monotonic() < deadline, f"sessions seen: {seen}"
            long.sendall(b"still")
            assert long.recv(5) == b"still"
            assert rig.echoes(targets["echo"])
            seen |= {session.session for session in supervisor.status().sessions}
            time.sleep(0.05)
        # The first one is there for the sake of its stream, and takes no others.
        assert any(session.session == first and session.retiring for session in supervisor.status().sessions)
    wait_until(lambda: first not in {session.session for session in supervisor.status().sessions}, "it has drained")


def test_after_a_sleep_the_session_is_a_new_one(rig: Rig, targets: dict[str, int]) -> None:
    supervisor = rig.start(timing=Timing(tick=0.2))
    first = supervisor.status().sessions[0].session
    rig.wall_offset = 3600.0
    wait_until(lambda: all(session.session != first for session in supervisor.status().sessions), "a new session")
    assert rig.echoes(targets["echo"])


def test_a_server_that_restarts_with_other_keys_is_found_again(rig: Rig, targets: dict[str, int]) -> None:
    supervisor = rig.start()
    assert rig.echoes(targets["echo"])
    rig.server.close()
    wait_until(lambda: supervisor.status().phase != "up", "the loss is noticed")
    rig.server = rig.serve(rig.new_key()[0], rig.port)
    wait_until(lambda: supervisor.is_ready(patient=True), "a session again", 20)
    assert supervisor.status().sessions[0].retried
    assert rig.echoes(targets["echo"])


def test_bootstrap_needs_no_resolver(rig: Rig, targets: dict[str, int], tmp_path: Path) -> None:
    rig.resolver.behaviour = "servfail"
    supervisor = rig.start(bootstrap=PUBLIC_NAME, cache=tmp_path)
    assert supervisor.status().sessions[0].retried

    def source() -> str | None:
        ech = supervisor.status().ech
        return None if ech is None else ech.source

    # The session is up a moment before the next plan is made.
    wait_until(lambda: source() == "retry", "the next plan has what the server handed over")
    assert rig.echoes(targets["echo"])
    kept = EchStore(tmp_path).configuration(f"{SERVER_NAME}:{rig.port}")
    assert kept is not None
    assert kept.configs == rig.configs


def test_a_server_that_stops_lets_streams_finish_and_its_successor_takes_the_new_ones(
    rig: Rig, targets: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = rig.start()
    old = rig.server
    with rig.open(targets["echo"]) as long, caplog.at_level(logging.INFO, "ech_workers"):
        long.sendall(b"hello")
        assert long.recv(5) == b"hello"
        stopping = threading.Thread(target=old.close, args=(20.0,))
        stopping.start()
        wait_until(lambda: "is stopping: it takes no new streams" in caplog.text, "the client is told")
        rig.server = rig.serve(rig.new_key()[0], rig.port)
        wait_until(lambda: supervisor.is_ready(patient=True), "a session with the successor", 20)
        assert rig.echoes(targets["echo"])
        long.sendall(b"still")
        assert long.recv(5) == b"still"
        assert supervisor.status().breaker == "closed"
        assert "session lost" not in caplog.text
    stopping.join(10)
    assert not stopping.is_alive()
