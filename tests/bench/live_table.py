"""What the live table and the status page cost: CPU of `ech-workers proxy` with them, beside `--plain`."""

import os
import pty
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from websockets.sync.client import connect

from .report import Table, median
from .subjects import Bench, cpu_seconds_of, free_port, local, wait_listening

LINES, COLUMNS = 40, 120
STOP_TIMEOUT = 10.0
# What the engine's threads are called.
ENGINE = "ech-client"


@dataclass
class InTerminal:
    """A program whose terminal is read all the time."""

    pid: int
    written: int = 0


@contextmanager
def terminal(command: Sequence[str | Path], environment: Mapping[str, str]) -> Iterator[InTerminal]:
    near, far = pty.openpty()
    termios.tcsetwinsize(far, (LINES, COLUMNS))
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=far,
        stdout=far,
        stderr=far,
        env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment},
    )
    os.close(far)
    found = InTerminal(process.pid)

    def read() -> None:
        try:
            while piece := os.read(near, 1 << 16):
                found.written += len(piece)
        except OSError:
            # How a terminal says that nobody writes to it any more.
            return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(STOP_TIMEOUT)
        os.close(near)


@contextmanager
def watched(url: str) -> Iterator[list[int]]:
    """The status page as a browser has it open: its feed is read all the time. The sizes of what came."""
    sizes: list[int] = []
    with connect(url.replace("http://", "ws://") + "feed", proxy=None) as feed:

        def read() -> None:
            for message in feed:
                sizes.append(len(message))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        yield sizes
    reader.join(STOP_TIMEOUT)


@dataclass
class Used:
    """CPU seconds so far."""

    process: float
    python: float
    """Of the threads that run Python."""

    @classmethod
    def by(cls, pid: int) -> "Used":
        entry = Path(f"/proc/{pid}")
        threads = (entry / "task").iterdir()
        python = [thread for thread in threads if not (thread / "comm").read_text().startswith(ENGINE)]
        return cls(cpu_seconds_of(entry), sum(map(precise_cpu_seconds_of, python)))

    def percent(self, before: "Used", seconds: float) -> "Used":
        """Of a core, since then."""
        return Used((self.process - before.process) / seconds * 100, (self.python - before.python) / seconds * 100)


def precise_cpu_seconds_of(thread: Path) -> float:
    """In nanoseconds instead of ticks, which are a large part of what is to be measured."""
    return int((thread / "schedstat").read_text().split()[0]) / 1e9


KINDS = ("--plain", "live table", "status page")


def table(bench: Bench) -> Table:
    taken: dict[tuple[str, str], list[Used]] = {}
    for _ in range(bench.rounds):
        for case, kind, used in measure(bench, 5 if bench.quick else 20):
            taken.setdefault((case, kind), []).append(used)
    return shown(taken)


def measure(bench: Bench, seconds: int) -> Iterator[tuple[str, str, Used]]:
    """All proxies idle at the same time, then each with a bulk stream."""
    target, port = bench.target()
    server = bench.site.server()
    plain = bench.site.proxy(server.port, *bench.known())
    page = bench.site.proxy(server.port, *bench.known(), "--status-listen", "0")
    url = page.process.wait_line(r"status page on (http://\S+)")[1]
    listen = free_port()
    arguments = bench.site.proxy_arguments(server.port, *bench.known(), "--listen", local(listen))
    command = [word for word in arguments if word != "--plain"]
    with terminal(command, bench.site.environment) as drawn, watched(url) as frames:
        wait_listening(listen)
        proxies = dict(
            zip(
                KINDS,
                ((plain.process.pid, plain.port), (drawn.pid, listen), (page.process.pid, page.port)),
                strict=True,
            )
        )
        for _, listening in proxies.values():
            # The session is up, and the imports are done.
            bench.load("requests", local(listening), local(port), 10)
        time.sleep(1)
        written, came = drawn.written, len(frames)
        started, before = time.monotonic(), {kind: Used.by(pid) for kind, (pid, _) in proxies.items()}
        time.sleep(seconds)
        for kind, (pid, _) in proxies.items():
            yield "idle", kind, Used.by(pid).percent(before[kind], time.monotonic() - started)
        assert drawn.written > written, "the table is not drawn"
        assert len(frames) - came >= seconds - 2, "the page is not fed"
        for kind, (pid, listening) in proxies.items():
            started, earlier = time.monotonic(), Used.by(pid)
            bench.load("bulk", local(listening), local(port), "down", seconds)
            yield "a bulk stream", kind, Used.by(pid).percent(earlier, time.monotonic() - started)
    for process in (plain.process, page.process, server.process, target):
        process.stop()


def shown(taken: dict[tuple[str, str], list[Used]]) -> Table:
    made = Table("The live table and the status page", ("", "", "CPU, % of a core", "of it Python's threads", "adds"))
    for case in ("idle", "a bulk stream"):
        plain = taken[case, KINDS[0]]
        for kind in KINDS:
            used = taken[case, kind]
            process, python = (median(getattr(each, of) for each in used) for of in ("process", "python"))
            adds = median(each.python - other.python for each, other in zip(used, plain, strict=True))
            made.rows.append((case, kind, f"{process:.2f}", f"{python:.2f}", "" if kind == KINDS[0] else f"{adds:.2f}"))
    made.notes.append(
        f"The table is drawn once a second in a terminal of {COLUMNS} x {LINES}; the status page is open once, with a frame a "
        "second. Both are Python's work, whose threads sleep with --plain: beside a bulk stream only they tell the price."
    )
    return made
