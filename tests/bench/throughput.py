"""One stream down, one up, 8 at a time each way, over loopback: MB/s, and CPU seconds per GiB of client and server."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import sing_box
from .report import Table, median, with_ratio
from .subjects import Bench, Subject

CHUNK = bytes(1 << 20)
GIB = 1 << 30
TESTS = {"down": 1, "up": 1, "8 down": 8, "8 up": 8}
TIMEOUT = 300


class Target:
    """Sends `size` bytes to each connection and ends it (source), or counts what comes until the end (sink)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrived = threading.Semaphore(0)
        self.source = self._serve(self._send)
        self.sink = self._serve(self._receive)

    def _serve(self, handle: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    def _send(self, connection: socket.socket) -> None:
        # A reader that goes away before the end says so itself.
        with connection, contextlib.suppress(OSError):
            send(connection, self.size)

    def _receive(self, connection: socket.socket) -> None:
        with connection:
            # Not until the end: in simple mode a half-close is held back.
            assert receive(connection, self.size) == self.size
            self.arrived.release()


def send(connection: socket.socket, size: int) -> None:
    for _ in range(size // len(CHUNK)):
        connection.sendall(CHUNK)


def receive(connection: socket.socket, size: int | None = None) -> int:
    """Reads `size` bytes, or up to the end; how many there were."""
    buffer, total = bytearray(1 << 20), 0
    while total != size and (count := connection.recv_into(buffer)):
        total += count
    return total


@dataclass
class Result:
    megabytes_per_second: float
    client: float
    server: float


def measure(subject: Subject, target: Target, direction: str, streams: int) -> Result:
    before = subject.cpu_seconds()
    started = time.monotonic()

    def one() -> None:
        if direction == "up":
            with subject.connect(target.sink) as connection:
                send(connection, target.size)
                assert target.arrived.acquire(timeout=TIMEOUT)
        else:
            with subject.connect(target.source) as connection:
                assert receive(connection, target.size) == target.size

    with ThreadPoolExecutor(streams) as pool:
        for running in [pool.submit(one) for _ in range(streams)]:
            running.result()
    seconds = time.monotonic() - started
    client, server = (
        (after - earlier) * GIB / (streams * target.size)
        for after, earlier in zip(subject.cpu_seconds(), before, strict=True)
    )
    return Result(streams * target.size / seconds / 1e6, client, server)


def table(bench: Bench) -> Table:
    results: dict[tuple[str, str], list[Result]] = {}
    large, small = Target(bench.mebibytes << 20), Target(max(bench.mebibytes // 8, 1) << 20)
    tunnels = [each for each in (bench.tunnel("yamux"), bench.tunnel("simple"), sing_box.subject(bench)) if each]
    for _number in range(bench.rounds):
        for test, streams in TESTS.items():
            target = large if streams == 1 else small
            direction = test.split()[-1]
            port = target.sink if direction == "up" else target.source
            for subject in (bench.pipe(port, direction), bench.stunnel(port), *tunnels):
                if subject is None:
                    continue
                result = measure(subject, target, direction, streams)
                results.setdefault((test, subject.name), []).append(result)
                if subject not in tunnels:
                    for process in (subject.client, subject.server):
                        assert process
                        process.stop()
    return shown(results, bench.mebibytes)


def shown(results: dict[tuple[str, str], list[Result]], mebibytes: int) -> Table:
    made = Table("Throughput", ("", "", "MB/s", "client CPU s/GiB", "server CPU s/GiB"))
    for (test, name), taken in results.items():
        columns = []
        for of, digits in (("megabytes_per_second", 0), ("client", 2), ("server", 2)):
            value, yardstick = (
                median(getattr(result, of) for result in among) for among in (taken, results[test, "TLS pipe"])
            )
            columns.append(with_ratio(value, yardstick, digits))
        made.rows.append((test, name, *columns))
    made.notes.append(
        f"{mebibytes} MiB each time; 8 streams carry an eighth each. In brackets the ratio to the TLS pipe."
    )
    made.notes.append(
        "TLS pipe: TLS 1.3 with AES-128-GCM alone, the same BoringSSL, two processes (rust/tls/examples/tls_pipe.rs)."
    )
    if not any(name == "stunnel" for _, name in results):
        made.notes.append("stunnel is not installed.")
    return made
