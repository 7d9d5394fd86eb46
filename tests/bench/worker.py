"""The Worker in its runtime, beside a script as deployed ones are: CPU for each MB, and memory behind a reader that stops."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import go, socks, worker_tools
from harness.processes import Process
from harness.tunnel import TOKEN
from harness.worker import DENIED, NEW_DATE, OLD_DATE, Deployment, Runtime, bundle
from harness.worker_tools import WorkerTools

from .report import Table, median, with_ratio
from .subjects import Bench, Subject, cpu_seconds, local, memory_kib
from .throughput import GIB, Target, measure

DEPLOYED = Path(__file__).with_name("deployed_worker.js")
VERSIONS = {"new": NEW_DATE, "old": OLD_DATE}
MEGABYTE, MEBIBYTE = 1_000_000, 1 << 20
PIECE_MEBIBYTES = 64
BEHIND = 400 * MEGABYTE
READ_FIRST = MEBIBYTE
TIMEOUT = 60.0
SETTLED = 1.0
NOBODY = "http://127.0.0.1:9/"


@dataclass
class Case:
    """A way of serving in one version of the runtime."""

    version: str
    name: str
    path: str
    mode: str
    runtime: Process
    tls_port: int

    @contextmanager
    def subject(self, bench: Bench) -> Iterator[Subject]:
        proxy = bench.site.proxy(self.tls_port, self.mode, *bench.known(), path=self.path)
        yield Subject(self.name, proxy.process, self.runtime, local(proxy.port), local)
        proxy.process.stop()


class Cases:
    def __init__(self, bench: Bench, tools: WorkerTools) -> None:
        self._bench = bench
        self._tools = tools
        self._terminator = go.build()["ech_terminator"]
        self.bundle = bundle(tools, bench.folder / "worker", seed=1)

    def start(self, version: str, name: str) -> Case:
        site = self._bench.site
        script = self.bundle.file if name != "deployed way" else DEPLOYED
        folder = self._bench.folder / "runtimes" / f"{version} {name} {time.monotonic_ns()}"
        program = self._tools.workerd(version)
        runtime = Runtime(folder, site.processes, program, VERSIONS[version], script, site.authority)
        deployment = Deployment(site, runtime, self.bundle, self._terminator, NOBODY)
        if name == "deployed way":
            process, port = runtime.start({"TOKEN": TOKEN}, denied=DENIED)
            return Case(version, name, "/", "--no-yamux", process, deployment.terminate(port))
        many = name == "multiplexed"
        worker = deployment.start(MULTIPLEXED="on" if many else "")
        return Case(
            version, name, worker.entry_path, "--yamux" if many else "--no-yamux", worker.process, worker.tls_port
        )


def behind_a_stopped_reader(case: Case, bench: Bench, port: int) -> float:
    """MB that the runtime grows by, at most, when a reader stops with 400 MB behind it."""
    with case.subject(bench) as subject:
        proxy, _, listening = subject.proxy.rpartition(":")
        before = memory_kib(case.runtime)
        with socks.connect((proxy, int(listening)), "127.0.0.1", port, TIMEOUT) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            socks.exactly(connection, READ_FIRST)
            deadline = time.monotonic() + TIMEOUT
            spent, highest = -1.0, 0
            # Until the runtime has nothing more to do.
            while (now := cpu_seconds(case.runtime)) - spent > 0.02 and time.monotonic() < deadline:
                spent = now
                time.sleep(SETTLED)
                highest = max(highest, memory_kib(case.runtime))
    return (highest - before) / 1024


def table(bench: Bench) -> Table:
    made = Table(
        "A Worker", ("runtime", "", "CPU ms/MB down", "CPU ms/MB up", "MB/s down", "MB/s up", "a reader that stops, MB")
    )
    try:
        tools = worker_tools.install()
    except worker_tools.UnavailableError as error:
        made.notes.append(f"Not measured: {error}.")
        return made
    cases = Cases(bench, tools)
    target = Target(PIECE_MEBIBYTES * MEBIBYTE)
    times = max(1, min(bench.mebibytes, 512) // PIECE_MEBIBYTES)
    behind = Target(BEHIND // MEBIBYTE * MEBIBYTE)
    taken: dict[tuple[str, str], list[tuple[float, float, float, float, float]]] = {}
    for _ in range(bench.rounds):
        for version in VERSIONS:
            for name in ("deployed way", "simple", "multiplexed"):
                case = cases.start(version, name)
                with case.subject(bench) as subject:
                    # The first bytes bring what all of them share.
                    measure(subject, Target(4 * MEBIBYTE), "down", 1)
                    down, up = (
                        [measure(subject, target, direction, 1) for _ in range(times)] for direction in ("down", "up")
                    )
                case.runtime.kill()
                fresh = cases.start(version, name)
                held = behind_a_stopped_reader(fresh, bench, behind.source)
                fresh.runtime.kill()
                costs = (sum(one.server for one in each) / times * 1000 * MEGABYTE / GIB for each in (down, up))
                rates = (sum(one.megabytes_per_second for one in each) / times for each in (down, up))
                taken.setdefault((version, name), []).append((*costs, *rates, held))  # type: ignore[arg-type]
    for (version, name), rows in taken.items():
        found = [median(row[at] for row in rows) for at in range(5)]
        first = [median(row[at] for row in taken[version, "deployed way"]) for at in range(5)]
        columns = (
            with_ratio(value, yardstick, digits)
            for value, yardstick, digits in zip(found, first, (2, 2, 0, 0, 0), strict=True)
        )
        made.rows.append((version, name, *columns))
    size = cases.bundle.file.stat().st_size
    made.notes.append(
        f"The bundle has {size / 1024:.1f} KB. CPU is the runtime's own, without TLS, which a terminator in front does."
    )
    made.notes.append(
        f"Runtimes: new is workerd {tools.version('new')}, old is {tools.version('old')}, which does not tell how much waits for a client. The deployed way: reads of the default size, no waiting (tests/bench/deployed_worker.js)."
    )
    made.notes.append(
        f"A reader that stops after 1 MB with {BEHIND // MEGABYTE} MB behind it: by how much the runtime's resident memory grows, at most."
    )
    return made
