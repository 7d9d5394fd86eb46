"""One stream's reader stops: what the other streams of its session notice, and what the stopped one holds."""

import contextlib
import hashlib
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import Self

from harness.targets import pattern, pattern_sha256

from . import long_path
from .report import Table, median, with_ratio
from .subjects import Bench, Subject, memory_kib

# More than the windows and every socket's buffers take.
SIZE = 128 << 20
READ_FIRST = 1 << 20
MEBIBYTE = 1 << 20
TIMEOUT = 60.0
SETTLED = 0.5
# Of the programs at both ends of the tunnel, so that what waits is the tunnel's own and its sockets'.
SMALL_BUFFER = 64 << 10


class Stream:
    """A stream whose sender never pauses, and whose reader reads when it is told to. The reader is here (down) or the target (up)."""

    def __init__(self, subject: Subject, direction: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(TIMEOUT)
            near = subject.connect(listener.getsockname()[1])
            far, _ = listener.accept()
        self._sender, self._reader = (far, near) if direction == "down" else (near, far)
        self._sender.settimeout(None)
        self._reader.settimeout(TIMEOUT)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        self._reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self._digest = hashlib.sha256()
        self.sent, self.arrived = 0, 0
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._sender, self._reader):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._sender.close()
        self._reader.close()

    def _send(self) -> None:
        try:
            for piece in pattern(SIZE):
                left = memoryview(piece)
                while left:
                    count = self._sender.send(left)
                    self.sent += count
                    left = left[count:]
        except OSError:
            # Ended from here, or it shows as what does not arrive.
            return

    def read(self, size: int) -> None:
        """Reads until `size` bytes have arrived in all, or the stream has ended."""
        while self.arrived < size and (piece := self._reader.recv(min(MEBIBYTE, size - self.arrived))):
            self.arrived += len(piece)
            self._digest.update(piece)

    def wait_blocked(self) -> int:
        """Returns once the sender can send nothing more: how many bytes are on the way."""
        deadline = time.monotonic() + TIMEOUT
        before = -1
        while before != self.sent:
            assert time.monotonic() < deadline, "the sender is not held back"
            before = self.sent
            time.sleep(SETTLED)
        assert self.sent < SIZE, "the sender is not held back"
        return self.sent - self.arrived

    def is_whole(self) -> bool:
        """Reads all the rest: whether everything came, unchanged."""
        try:
            self.read(SIZE)
        except OSError:
            return False
        return self._digest.hexdigest() == pattern_sha256(SIZE)


class Bulk:
    """A stream of the load's target that runs until it is ended, and what it has moved."""

    def __init__(self, subject: Subject, port: int, direction: str) -> None:
        self.moved = 0
        self._connection = subject.connect(port)
        self._connection.sendall(b"D" if direction == "down" else b"U")
        # Upwards the target answers every MiB with a byte.
        self._unit = 1 if direction == "down" else MEBIBYTE
        work = [self._count] if direction == "down" else [self._count, self._send]
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._connection.close()

    def _count(self) -> None:
        buffer = bytearray(MEBIBYTE)
        try:
            while count := self._connection.recv_into(buffer):
                self.moved += count * self._unit
        except OSError:
            return

    def _send(self) -> None:
        chunk = bytes(MEBIBYTE)
        try:
            while True:
                self._connection.sendall(chunk)
        except OSError:
            return


@dataclass
class Moment:
    """The session at one time: memory at rest, then a bulk stream and small requests beside it."""

    megabytes_per_second: float
    p50: float
    p99: float
    client: float
    server: float


def moment(bench: Bench, subject: Subject, port: int, direction: str) -> Moment:
    assert subject.client
    assert subject.server
    client, server = (memory_kib(process) / 1024 for process in (subject.client, subject.server))
    with Bulk(subject, port, direction) as bulk:
        time.sleep(SETTLED)
        before, started = bulk.moved, time.monotonic()
        found = bench.load("requests", subject.proxy, subject.address(port), 200 if bench.quick else 1000)
        rate = (bulk.moved - before) / (time.monotonic() - started) / 1e6
    return Moment(rate, found["p50"], found["p99"], client, server)


@dataclass
class Result:
    before: Moment
    stopped: Moment
    on_the_way: int
    whole: bool


def measure(bench: Bench, port: int, direction: str) -> Result:
    subject = bench.tunnel()
    assert subject.client
    assert subject.server
    # The first bulk stream brings what all of them share.
    moment(bench, subject, port, direction)
    time.sleep(SETTLED)
    before = moment(bench, subject, port, direction)
    with Stream(subject, direction) as stream:
        stream.read(READ_FIRST)
        on_the_way = stream.wait_blocked()
        stopped = moment(bench, subject, port, direction)
        result = Result(before, stopped, on_the_way, stream.is_whole())
    for process in (subject.client, subject.server):
        process.stop()
    return result


@dataclass
class LongPath:
    """MB/s of another stream before and while one is stopped, and the MB that both ends hold then."""

    before: float
    stopped: float
    client: float
    server: float


def on_long_path(bench: Bench, between: long_path.Path80, subject: Subject, direction: str) -> LongPath:
    """The stream is stopped in full flight, once its window has grown: by a signal to the program that reads."""
    assert subject.client
    assert subject.server
    ends = subject.client, subject.server
    seconds = 3 if bench.quick else 6
    address = f"{long_path.FAR}:{long_path.TARGET_PORT + 1}"

    def other() -> float:
        words = ("bulk", subject.proxy, subject.address(long_path.TARGET_PORT), direction, seconds)
        found = bench.load(*words, prefix=between.near)
        return float(found["bytes"] / found["seconds"] / 1e6)

    target, _ = bench.target(address, between.far)
    rate = other()
    time.sleep(SETTLED)
    before = [memory_kib(end) for end in ends]
    load = bench.processes.start(
        *between.near,
        *(bench.programs["load"], "bulk", subject.proxy, address, direction, str(int(TIMEOUT))),
    )
    time.sleep(seconds)
    reader = load if direction == "down" else target
    reader.signal(signal.SIGSTOP)
    try:
        # Until the kernel's buffers are full as well, which may be large here.
        time.sleep(2)
        held = [(memory_kib(end) - earlier) / 1024 for end, earlier in zip(ends, before, strict=True)]
        stopped = other()
    finally:
        reader.signal(signal.SIGCONT)
        load.stop()
        target.stop()
    return LongPath(rate, stopped, *held)


def table(bench: Bench) -> Table:
    _, port = bench.target()
    taken: dict[str, list[Result]] = {}
    for _ in range(bench.rounds):
        for direction in ("down", "up"):
            taken.setdefault(direction, []).append(measure(bench, port, direction))
    made = shown(taken)
    if reason := long_path.missing():
        made.notes.append(f"With a window that has grown, on a path of 80 ms: {reason}.")
        return made
    far: dict[str, list[LongPath]] = {}
    for _ in range(bench.rounds):
        for direction in ("down", "up"):
            with (
                long_path.path(bench, 40, 1000) as between,
                long_path.subjects(bench, between, {"yamux": "optimistic"}) as compared,
            ):
                far.setdefault(direction, []).append(on_long_path(bench, between, compared[1], direction))
    add_long_path(made, far)
    return made


def shown(taken: dict[str, list[Result]]) -> Table:
    made = Table("One reader stops", ("", "", "before", "while it is stopped"))
    for direction, results in taken.items():
        for name, of, digits in (
            ("another bulk stream, MB/s", "megabytes_per_second", 0),
            ("a small request beside it, p50 ms", "p50", 2),
            ("a small request beside it, p99 ms", "p99", 2),
        ):
            before, stopped = (
                median(getattr(each, of) for each in moments)
                for moments in ([each.before for each in results], [each.stopped for each in results])
            )
            made.rows.append((direction, name, f"{before:.{digits}f}", with_ratio(stopped, before, digits)))
        for end in ("client", "server"):
            before = median(getattr(each.before, end) for each in results)
            more = median(getattr(each.stopped, end) - getattr(each.before, end) for each in results)
            made.rows.append((direction, f"memory of the {end}, MB", f"{before:.1f}", f"{more:+.1f}"))
        on_the_way = median(each.on_the_way / MEBIBYTE for each in results)
        made.rows.append((direction, "sent to it and not read, MB", "", f"{on_the_way:.1f}"))
    results = [each for among in taken.values() for each in among]
    made.notes.append(
        "All on one session; the stopped reader is the local program (down) or the target (up). Memory is resident, taken "
        "while the others rest. A stream's window is at most 256 KiB on a path this short, where it is not alone; what is "
        "sent and not read is also in the kernel, in the buffers of the tunnel's sockets."
    )
    made.notes.append(
        f"The reader went on afterwards, and all {SIZE >> 20} MiB of its stream arrived unchanged: "
        f"{sum(each.whole for each in results)} of {len(results)} times."
    )
    return made


def add_long_path(made: Table, taken: dict[str, list[LongPath]]) -> None:
    for direction, results in taken.items():
        case = f"{direction}, 80 ms"
        before, stopped = (median(getattr(each, of) for each in results) for of in ("before", "stopped"))
        made.rows.append((case, "another bulk stream, MB/s", f"{before:.0f}", with_ratio(stopped, before, 0)))
        for end in ("client", "server"):
            held = median(getattr(each, end) for each in results)
            made.rows.append((case, f"memory of the {end}, MB", "", f"{held:+.1f}"))
    made.notes.append(
        "80 ms, 1 Gbit/s: stopped in full flight, when its window has grown; a window has at most "
        f"{long_path.OWN_WINDOW >> 20} MiB."
    )
