"""`make soak`: the whole tunnel under mixed load for an hour (`--minutes N`).

Downloads, uploads, echoes and short requests go through two proxies, one in each mode, at the same time. Every 45 s all connections to the
server are cut. Every five minutes the server is replaced by another one, which drains the sessions, with new ECH keys. Each transfer that
comes to its end must have the right SHA-256, and the memory of both proxies must be flat: over the last three quarters the least resident memory
of one minute may be at most 3 MB above that of the first of these minutes.
"""

import argparse
import contextlib
import hashlib
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from harness import socks
from harness.authority import Authority
from harness.ech import ech_key
from harness.processes import Processes, python_program
from harness.targets import pattern, pattern_sha256
from harness.tunnel import PUBLIC_NAME, ProxyProgram, Site

CUT_EVERY = 45.0
REPLACE_EVERY = 300.0
GROWTH_MAX_KIB = 3 * 1024
SIZES = (1_003, 70_001, 1_000_003, 20_000_003)
IDLE = 60.0


class Relay:
    """A port in front of the server, whose connections can be cut, and whose server can be replaced."""

    def __init__(self) -> None:
        self.server = ("127.0.0.1", 0)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            # It may just have ended by itself.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.server, 5)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._connections |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = bytearray(1 << 18)
        try:
            while count := source.recv_into(buffer):
                sink.sendall(memoryview(buffer)[:count])
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (source, sink):
                # It may be closed already.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            # The second of the two directions to end closes both.
            if source in self._connections and sink in self._connections:
                self._connections -= {source}
            else:
                self._connections -= {source, sink}
                source.close()
                sink.close()


class Load:
    """Programs that transfer without pause. A transfer may be cut; one that ends must be right."""

    def __init__(self, proxy: ProxyProgram, targets: dict[str, int], name: str) -> None:
        self.results: Counter[str] = Counter()
        self.bytes = 0
        self._proxy = proxy
        self._targets = targets
        self._stop = threading.Event()
        works = (self._download, self._upload, self._echo, self._request, self._request)
        self._threads = [
            threading.Thread(target=self._work, args=(work, random.Random(f"{name} {number}")), daemon=True)
            for number, work in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(IDLE + 30)
            assert not thread.is_alive(), "a connection hangs"

    def _work(self, work: "object", dice: random.Random) -> None:
        assert callable(work)
        while not self._stop.is_set():
            try:
                outcome = work(dice)
            except (OSError, EOFError, ValueError, socks.ReplyError):
                outcome = "cut"
                self._stop.wait(0.2)
            self.results[outcome] += 1
            # The point is an hour of many things, not of full cores.
            self._stop.wait(dice.uniform(0, 1))

    def _connect(self, service: str) -> socket.socket:
        return socks.connect(self._proxy.address, "127.0.0.1", self._targets[service], timeout=IDLE)

    def _download(self, dice: random.Random) -> str:
        size = dice.choice(SIZES)
        with self._connect("http") as connection:
            connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            body = socks.until_end(connection).partition(b"\r\n\r\n")[2]
        self.bytes += len(body)
        if len(body) < size:
            return "cut"
        return "downloaded" if hashlib.sha256(body).hexdigest() == pattern_sha256(size) else "WRONG download"

    def _upload(self, dice: random.Random) -> str:
        size = dice.choice(SIZES)
        with self._connect("http") as connection:
            connection.sendall(
                f"PUT /sink HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
            )
            for piece in pattern(size):
                connection.sendall(piece)
            answer = socks.until_end(connection).partition(b"\r\n\r\n")[2]
        self.bytes += size
        if not answer:
            return "cut"
        return "uploaded" if json.loads(answer)["sha256"] == pattern_sha256(size) else "WRONG upload"

    def _echo(self, dice: random.Random) -> str:
        with self._connect("echo") as connection:
            for _ in range(30):
                message = dice.randbytes(dice.randrange(1, 20_000))
                connection.sendall(message)
                if socks.exactly(connection, len(message)) != message:
                    return "WRONG echo"
                self.bytes += len(message)
        return "echoed"

    def _request(self, dice: random.Random) -> str:
        with self._connect("http") as connection:
            for _ in range(dice.randrange(1, 5)):
                connection.sendall(b"GET /bytes/100 HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = b""
                while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < 100:
                    piece = connection.recv(4096)
                    if not piece:
                        return "cut"
                    answer += piece
                if answer.partition(b"\r\n\r\n")[2] != b"".join(pattern(100)):
                    return "WRONG request"
        return "requested"


class Memory:
    """The least resident memory of each minute, in KiB."""

    def __init__(self) -> None:
        self.minutes: list[int] = []
        self._least: int | None = None

    def sample(self, kib: int) -> None:
        self._least = kib if self._least is None else min(self._least, kib)

    def end_minute(self) -> None:
        if self._least is not None:
            self.minutes.append(self._least)
        self._least = None

    def growth(self) -> int:
        """Of the last three quarters, from their first minute to their last ones."""
        later = self.minutes[len(self.minutes) // 4 :]
        return min(later[-3:]) - later[0]


def run(minutes: float) -> int:
    processes = Processes()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        authority = Authority(folder)
        site = Site.make(folder, processes, authority)
        event = processes.start(
            *python_program("harness.targets"),
            str(folder / "files"),
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
        ).wait_event("listening")
        targets = {service: port for service, port in event.items() if service != "event"}
        relay = Relay()
        server = site.server("--drain", "5", publish=False)
        relay.server = ("127.0.0.1", server.port)
        site.publish(relay.port, site.key.base64)
        proxies = {mode: site.proxy(relay.port, mode) for mode in ("--yamux", "--no-yamux")}
        loads = {mode: Load(proxy, targets, mode) for mode, proxy in proxies.items()}
        memory = {mode: Memory() for mode in proxies}
        key_id = 20
        started = time.monotonic()
        next_minute, next_cut, next_replacement = 60.0, CUT_EVERY, REPLACE_EVERY
        while (elapsed := time.monotonic() - started) < minutes * 60:
            time.sleep(1)
            for mode, proxy in proxies.items():
                if not proxy.process.running:
                    failures.append(f"proxy {mode} ended: {proxy.process.output[-2000:]}")
                    minutes = 0
                    break
                memory[mode].sample(proxy.process.resident_kib())
            if elapsed >= next_minute:
                next_minute += 60
                for mode in proxies:
                    memory[mode].end_minute()
                report = {mode: (memory[mode].minutes[-1], dict(load.results)) for mode, load in loads.items()}
                print(f"{elapsed / 60:.0f} min", report, flush=True)
            if elapsed >= next_cut:
                next_cut += CUT_EVERY
                relay.cut()
            if elapsed >= next_replacement:
                next_replacement += REPLACE_EVERY
                key_id = 20 + (key_id + 1) % 200
                for file in site.keys_folder.glob("*.pem"):
                    file.unlink()
                site.key = ech_key(site.keys_folder, PUBLIC_NAME, key_id)
                former, server = server, site.server("--drain", "5", publish=False)
                relay.server = ("127.0.0.1", server.port)
                # The resolver still has the old keys half of the time: the server's own retry configurations heal that.
                if key_id % 2:
                    site.publish(relay.port, site.key.base64)
                former.process.stop()
        for load in loads.values():
            load.stop()
        for mode, load in loads.items():
            print(mode, dict(load.results), f"{load.bytes >> 20} MiB", f"{memory[mode].minutes} KiB by minute")
            wrong = {what: count for what, count in load.results.items() if "WRONG" in what}
            if wrong:
                failures.append(f"{mode}: {wrong}")
            for what in ("downloaded", "uploaded", "echoed", "requested"):
                if not load.results[what]:
                    failures.append(f"{mode}: nothing was {what}")
            if len(memory[mode].minutes) >= 8 and memory[mode].growth() > GROWTH_MAX_KIB:
                failures.append(f"{mode}: memory grew by {memory[mode].growth()} KiB after the first quarter")
        for proxy in proxies.values():
            for trace in ("Traceback", "panicked", "internal"):
                if trace in proxy.process.output:
                    failures.append(f"{trace} in the output of a proxy")
        relay.stop()
        processes.stop()
        site.resolver.stop()
    for failure in failures:
        print("FAILED:", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    sys.exit(run(parser.parse_args().minutes))
