"""What the live table costs: CPU of `ech-workers proxy` in a terminal, beside `--plain`."""

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

from .report import Table, median
from .subjects import Bench, cpu_seconds_of, free_port, local, wait_listening

LINES, COLUMNS = 40, 120
STOP_TIMEOUT = 10.0


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


@dataclass
class Used:
    """CPU seconds so far."""

    process: float
    main_thread: float

    @classmethod
    def by(cls, pid: int) -> "Used":
        entry = Path(f"/proc/{pid}")
        return cls(cpu_seconds_of(entry), cpu_seconds_of(entry / "task" / str(pid)))

    def percent(self, before: "Used", seconds: float) -> "Used":
        """Of a core, since then."""
        return Used(
            (self.process - before.process) / seconds * 100, (self.main_thread - before.main_thread) / seconds * 100
        )


def table(bench: Bench) -> Table:
    taken: dict[tuple[str, str], list[Used]] = {}
    for _ in range(bench.rounds):
        for case, kind, used in measure(bench, 5 if bench.quick else 20):
            taken.setdefault((case, kind), []).append(used)
    return shown(taken)


def measure(bench: Bench, seconds: int) -> Iterator[tuple[str, str, Used]]:
    """Both proxies idle at the same time, then each with a bulk stream."""
    target, port = bench.target()
    server = bench.site.server()
    plain = bench.site.proxy(server.port, *bench.known())
    listen = free_port()
    arguments = bench.site.proxy_arguments(server.port, *bench.known(), "--listen", local(listen))
    command = [word for word in arguments if word != "--plain"]
    with terminal(command, bench.site.environment) as drawn:
        wait_listening(listen)
        proxies = {"--plain": (plain.process.pid, plain.port), "live table": (drawn.pid, listen)}
        for _, listening in proxies.values():
            # The session is up, and the imports are done.
            bench.load("requests", local(listening), local(port), 10)
        time.sleep(1)
        written = drawn.written
        started, before = time.monotonic(), {kind: Used.by(pid) for kind, (pid, _) in proxies.items()}
        time.sleep(seconds)
        for kind, (pid, _) in proxies.items():
            yield "idle", kind, Used.by(pid).percent(before[kind], time.monotonic() - started)
        assert drawn.written > written, "the table is not drawn"
        for kind, (pid, listening) in proxies.items():
            started, earlier = time.monotonic(), Used.by(pid)
            bench.load("bulk", local(listening), local(port), "down", seconds)
            yield "a bulk stream", kind, Used.by(pid).percent(earlier, time.monotonic() - started)
    for process in (plain.process, server.process, target):
        process.stop()


def shown(taken: dict[tuple[str, str], list[Used]]) -> Table:
    made = Table("The live table", ("", "", "CPU, % of a core", "of it the main thread"))
    for case in ("idle", "a bulk stream"):
        for kind in ("--plain", "live table"):
            process, main_thread = (
                median(getattr(used, of) for used in taken[case, kind]) for of in ("process", "main_thread")
            )
            made.rows.append((case, kind, f"{process:.2f}", f"{main_thread:.2f}"))
        adds = median(
            drawn.main_thread - plain.main_thread
            for drawn, plain in zip(taken[case, "live table"], taken[case, "--plain"], strict=True)
        )
        made.rows.append((case, "the table adds", "", f"{adds:.2f}"))
    made.notes.append(
        f"Drawn once a second in a terminal of {COLUMNS} x {LINES}, by the main thread, which sleeps with --plain: beside "
        "a bulk stream only that thread tells what the table costs."
    )
    return made
