"""`make bench`: one stream down, one up, 8 at a time, over loopback; medians of several interleaved rounds.

The yardstick is rust/tls/examples/tls_pipe.rs, two processes like the tunnel's. Machines are noisy: quote ratios within one run.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from harness import socks  # noqa: E402
from harness.authority import Authority  # noqa: E402
from harness.processes import Process, Processes, run  # noqa: E402
from harness.tunnel import SERVER_NAME, Site  # noqa: E402

CHUNK = bytes(1 << 20)
TICKS = os.sysconf("SC_CLK_TCK")
GIB = 1 << 30
TESTS = {"down": 1, "up": 1, "8 down": 8}


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
        with connection:
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
class Subject:
    """A client process, a server process, and how to connect through them."""

    name: str
    client: Process
    server: Process
    connect: Callable[[int], socket.socket]


@dataclass
class Result:
    megabytes_per_second: float
    client: float
    server: float


def cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(subject: Subject, target: Target, test: str, streams: int) -> Result:
    before = cpu_seconds(subject.client), cpu_seconds(subject.server)
    started = time.monotonic()

    def one() -> None:
        if test == "up":
            with subject.connect(target.sink) as connection:
                send(connection, target.size)
                assert target.arrived.acquire(timeout=300)
        else:
            with subject.connect(target.source) as connection:
                assert receive(connection) == target.size

    threads = [threading.Thread(target=one) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    gibibytes = streams * target.size / GIB
    return Result(
        streams * target.size / seconds / 1e6,
        (cpu_seconds(subject.client) - before[0]) / gibibytes,
        (cpu_seconds(subject.server) - before[1]) / gibibytes,
    )


def tls_pipe() -> Path:
    built = run(
        *("cargo", "build", "--release", "--locked", "--message-format=json", "-p", "ech-workers-tls"),
        *("--example", "tls_pipe"),
        cwd=ROOT,
        timeout=1200,
    )
    if built.returncode != 0:
        raise SystemExit(built.stderr)
    artifacts = [json.loads(line) for line in built.stdout.splitlines()]
    return Path(next(a["executable"] for a in artifacts if a.get("target", {}).get("name") == "tls_pipe"))


def pipe(program: Path, site: Site, target: int, direction: str) -> Subject:
    def start(*arguments: str | Path) -> tuple[Process, str]:
        process = site.processes.start(program, *arguments, direction)
        return process, process.wait_event("listening")["address"]

    server, address = start("server", "127.0.0.1:0", f"127.0.0.1:{target}", site.inner.chain, site.inner.key)
    client, address = start("client", "127.0.0.1:0", address, SERVER_NAME, site.authority.path)
    port = int(address.rpartition(":")[2])
    return Subject("TLS pipe", client, server, lambda _: socket.create_connection(("127.0.0.1", port)))


def tunnel(site: Site, mode: str) -> Subject:
    server = site.server()
    proxy = site.proxy(server.port, "--yamux" if mode == "yamux" else "--no-yamux")
    return Subject(
        mode, proxy.process, server.process, lambda port: socks.connect(proxy.address, "127.0.0.1", port, timeout=300)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=1024, help="a stream; 8 streams carry an eighth each")
    parser.add_argument("--json", type=Path, help="the single results as well, one a line")
    options = parser.parse_args()
    program = tls_pipe()
    results: dict[tuple[str, str], list[Result]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, processes = Path(name), Processes()
        site = Site.make(folder / "site", processes, Authority(folder / "authority"))
        try:
            large, small = Target(options.mebibytes << 20), Target(options.mebibytes // 8 << 20)
            tunnels = [tunnel(site, "yamux"), tunnel(site, "simple")]
            for number in range(options.rounds):
                for test, streams in TESTS.items():
                    target = large if streams == 1 else small
                    direction, port = ("up", target.sink) if test == "up" else ("down", target.source)
                    for subject in (pipe(program, site, port, direction), *tunnels):
                        result = measure(subject, target, test, streams)
                        results.setdefault((test, subject.name), []).append(result)
                        if options.json:
                            with options.json.open("a") as out:
                                print(
                                    json.dumps(
                                        {"round": number, "test": test, "subject": subject.name, **vars(result)}
                                    ),
                                    file=out,
                                )
        finally:
            processes.stop()
            site.resolver.stop()
    show(results)


def show(results: dict[tuple[str, str], list[Result]]) -> None:
    """Medians; in brackets the ratio to the pipe's."""
    print(f"{'':8}{'':10}{'MB/s':>8}  {'client CPU s/GiB':>18}  {'server CPU s/GiB':>18}")
    for (test, name), single in results.items():
        yardstick = results[test, "TLS pipe"]

        def median(of: str, among: list[Result]) -> float:
            return float(statistics.median(getattr(each, of) for each in among))

        def column(of: str, single: list[Result] = single, yardstick: list[Result] = yardstick) -> str:
            return f"{median(of, single):.2f} ({median(of, single) / max(median(of, yardstick), 0.01):.2f})"

        print(
            f"{test:8}{name:10}{median('megabytes_per_second', single):8.0f}  {column('client'):>18}  {column('server'):>18}"
        )


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        raise SystemExit(str(error)) from None
