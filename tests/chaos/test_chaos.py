"""Traffic while everything fails: servers die and come back, connections are cut, keys change, the resolver lies or is silent.

Whatever comes through must be right, nothing may grow without end, and when the trouble is over the tunnel works again by itself.
CHAOS_SECONDS sets how long (60), CHAOS_SEED repeats a run.
"""

import hashlib
import os
import random
import threading
import time
from collections import Counter

import pytest

from harness import socks
from harness.curl import fetch
from harness.ech import ech_key
from harness.processes import Processes
from harness.tap import Tap
from harness.targets import pattern, pattern_sha256
from harness.tunnel import PUBLIC_NAME, ProxyProgram, ServerProgram, Site

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))
SIZE = 2_000_003
# A dial may come 90 s after the last failure: the breaker's pause is a minute at most, and its jitter half of that more.
RECOVERY = 120.0
RESIDENT_MAX_KIB = 300_000


class Traffic:
    """Programs that fetch and echo without pause; failures are allowed, wrong bytes are not."""

    def __init__(self, proxy: ProxyProgram, targets: dict[str, int], threads: int) -> None:
        self.results: Counter[str] = Counter()
        self._proxy = proxy
        self._targets = targets
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a connection hangs"

    def _work(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self.results[self._fetch() if number % 2 else self._echo()] += 1
            except (OSError, EOFError, socks.ReplyError):
                self.results["failed"] += 1
                self._stop.wait(0.05)

    def _fetch(self) -> str:
        with socks.connect(self._proxy.address, "127.0.0.1", self._targets["http"], timeout=30) as connection:
            connection.sendall(f"GET /bytes/{SIZE} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            body = socks.until_end(connection).partition(b"\r\n\r\n")[2]
        if len(body) < SIZE:
            return "cut"
        return "fetched" if hashlib.sha256(body).hexdigest() == pattern_sha256(SIZE) else "WRONG"

    def _echo(self) -> str:
        with socks.connect(self._proxy.address, "127.0.0.1", self._targets["echo"], timeout=30) as connection:
            for _ in range(20):
                message = os.urandom(random.randrange(1, 20_000))
                connection.sendall(message)
                if socks.exactly(connection, len(message)) != message:
                    return "WRONG"
        return "echoed"


class Trouble:
    """The things that happen to one tunnel."""

    def __init__(self, site: Site, dice: random.Random) -> None:
        self.site = site
        self.dice = dice
        self.server: ServerProgram = site.server("--drain", "1", publish=False)
        self.tap = Tap(("127.0.0.1", self.server.port))
        self.key_id = 20
        site.publish(self.tap.port, site.key.base64)
        self.kinds = [
            self.kill_server,
            self.stop_server,
            self.cut,
            self.rotate_key,
            self.resolver_fails,
            self.resolver_silent,
            self.nothing,
        ]

    def happen(self) -> str:
        kind = self.dice.choice(self.kinds)
        kind()
        return kind.__name__

    def kill_server(self) -> None:
        self.server.process.kill()
        time.sleep(self.dice.uniform(0, 3))
        self._start_server()

    def stop_server(self) -> None:
        self.server.process.stop()
        self._start_server()

    def cut(self) -> None:
        self.tap.break_connections()

    def rotate_key(self) -> None:
        """A new key replaces the old one on the server; the resolver still has the old one for a while."""
        self.key_id += 1
        for file in self.site.keys_folder.glob("*.pem"):
            file.unlink()
        self.site.key = ech_key(self.site.keys_folder, PUBLIC_NAME, self.key_id)
        self.stop_server()
        if self.dice.random() < 0.5:
            self.site.publish(self.tap.port, self.site.key.base64)

    def resolver_fails(self) -> None:
        self.site.resolver.behaviour = self.dice.choice(["servfail", "http-500", "garbage"])
        time.sleep(self.dice.uniform(0, 3))
        self.site.resolver.behaviour = "answer"

    def resolver_silent(self) -> None:
        self.site.resolver.behaviour = "silent"
        self.tap.break_connections()
        time.sleep(self.dice.uniform(0, 3))
        self.site.resolver.behaviour = "answer"

    def nothing(self) -> None:
        time.sleep(self.dice.uniform(0, 3))

    def _start_server(self) -> None:
        self.server = self.site.server("--drain", "1", publish=False)
        self.tap.upstream = ("127.0.0.1", self.server.port)


@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_tunnel_survives_everything_and_never_delivers_wrong_bytes(
    site: Site, processes: Processes, targets: dict[str, int], mode: str
) -> None:
    print(f"CHAOS_SEED={SEED}")
    dice = random.Random(SEED)
    trouble = Trouble(site, dice)
    proxy = site.proxy(trouble.tap.port, mode, "--sessions", "2" if mode == "--yamux" else "1")
    traffic = Traffic(proxy, targets, 8)
    happened: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        happened[trouble.happen()] += 1
        time.sleep(dice.uniform(0, 2))
        assert proxy.process.running, proxy.process.output
    site.publish(trouble.tap.port, site.key.base64)
    recovered_by = time.monotonic() + RECOVERY
    while True:
        before = traffic.results["fetched"]
        time.sleep(1)
        if traffic.results["fetched"] > before:
            break
        assert time.monotonic() < recovered_by, (
            f"no traffic {RECOVERY} s after the last trouble\n{proxy.process.output}"
        )
    traffic.stop()
    print(dict(happened), dict(traffic.results), f"{proxy.process.resident_kib()} KiB")
    assert traffic.results["WRONG"] == 0
    assert traffic.results["fetched"] > 0
    assert fetch(proxy, "socks5", f"http://127.0.0.1:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    assert proxy.process.resident_kib() < RESIDENT_MAX_KIB
    assert "Traceback" not in proxy.process.output
    assert "panicked" not in proxy.process.output
    trouble.tap.stop()
