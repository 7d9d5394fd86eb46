"""Paths between two network namespaces (as root): 80 ms at 1 Gbit/s; the same at 200 Mbit/s with loss; round trips of the first
request."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import go
from harness.processes import Process, run
from harness.tunnel import COMMAND, PATH, TOKEN

from .report import Table, median, with_ratio
from .subjects import Bench, Subject

NEAR, FAR = "10.77.0.1", "10.77.0.2"
SERVER_PORT, DEPLOYED_PORT, TARGET_PORT = 8443, 8444, 9000
ROUND_TRIP = 0.08
# Bytes a second.
LINK = 125e6
# What a side lets the other send on one stream before it reads: our maximum both ways, the deployed server's upwards.
OWN_WINDOW, DEPLOYED_WINDOW = 16 << 20, 4 << 20
# It gives back half of its window when all of that half has been read, which takes the link some time to carry.
HALF_CARRIED = DEPLOYED_WINDOW / 2 / LINK
DEPLOYED = "yamux, the deployed Go server"
# Both ends of the comparison get windows that the path needs (the system's defaults end at 6 MB), and none begins with what the
# system has learned by another's connections.
TCP_SETTINGS = {
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 65536 67108864",
    "net.ipv4.tcp_no_metrics_save": "1",
}


@dataclass
class Path80:
    """The namespaces and the link between them."""

    near: tuple[str, ...]
    far: tuple[str, ...]


def missing() -> str | None:
    """Why it cannot be measured here."""
    if os.geteuid() != 0:
        return "not measured: needs root for network namespaces"
    if shutil.which("go") is None:
        return "not measured: needs Go for tests/interop/go/cmd/delay_link"
    if shutil.which("ip") is None or not Path("/dev/net/tun").exists():
        return "not measured: needs iproute2 and /dev/net/tun"
    return None


@contextmanager
def path(bench: Bench, milliseconds: float, megabits: int, *, percent: float = 0, mtu: int = 9000) -> Iterator[Path80]:
    """milliseconds, and percent lost: each way. mtu: large packets, since the link copies each of them twice."""
    link = go_program(bench, "delay_link")
    assert link
    names = [f"ew{end}{os.getpid()}" for end in ("n", "f")]
    program = bench.processes.start(link, *names, str(milliseconds), str(megabits), str(percent))
    try:
        program.wait_line("ready")
        for name, own, other in ((names[0], NEAR, FAR), (names[1], FAR, NEAR)):
            inside = ("ip", "-n", name)
            command("ip", "netns", "add", name)
            command("ip", "link", "set", name, "netns", name)
            command(*inside, "addr", "add", own, "peer", other, "dev", name)
            command(*inside, "link", "set", "lo", "up")
            for setting, value in TCP_SETTINGS.items():
                command("ip", "netns", "exec", name, "sysctl", "-qw", f"{setting}={value}")
            command(*inside, "link", "set", name, "mtu", str(mtu), "txqueuelen", "10000", "up")
        yield Path80(*(("ip", "netns", "exec", name) for name in names))
    finally:
        program.stop()
        for name in names:
            run("ip", "netns", "del", name)


def command(*words: str) -> None:
    subprocess.run(words, check=True)


def go_program(bench: Bench, name: str) -> Path | None:
    """One of tests/interop/go/cmd; None where it cannot be built, as without its modules."""
    program = bench.folder / name
    if not program.exists():
        built = run("go", "build", "-o", program, f"./cmd/{name}", cwd=go.SOURCE, timeout=go.BUILD_TIMEOUT)
        if built.returncode != 0:
            print(built.stderr, file=sys.stderr)
            return None
    return program


@contextmanager
def subjects(
    bench: Bench, between: Path80, replies: dict[str, str], deployed: Path | None = None
) -> Iterator[list[Subject]]:
    """Direct TCP, a tunnel for each way to reply, one to the deployed server; all to a target at the far end."""
    site = bench.site
    target, _ = bench.target(f"{FAR}:{TARGET_PORT}", between.far)
    server = bench.processes.start(
        *between.far,
        *(COMMAND, "server", "--listen", f"{FAR}:{SERVER_PORT}", "--token", TOKEN, "--path", PATH),
        *("--cert", site.inner.chain, "--key", site.inner.key, "--cert", site.outer.chain, "--key", site.outer.key),
        *("--ech-keys", site.keys_folder, "--allow-private-targets"),
    )
    server.wait_line("listening on")
    compared = [Subject("direct TCP", None, None, "-", lambda port: f"{FAR}:{port}")]
    started = [target, server]
    ways = [(name, server, SERVER_PORT, reply) for name, reply in replies.items()]
    if deployed:
        started.append(deployed_server(bench, between, deployed))
        ways.append((DEPLOYED, started[-1], DEPLOYED_PORT, "optimistic"))
    for name, end, port, reply in ways:
        arguments = site.proxy_arguments(port, *bench.known(FAR), "--reply", reply, resolver=False)
        proxy = bench.processes.start(*between.near, *arguments, env=site.environment)
        started.append(proxy)
        listening = proxy.wait_line(r"listening on \S+:(\d+)\b")[1]
        proxy.wait_line("session up")
        compared.append(Subject(name, proxy, end, f"127.0.0.1:{listening}", lambda port: f"{FAR}:{port}"))
    yield compared
    for process in started:
        process.stop()


def deployed_server(bench: Bench, between: Path80, program: Path) -> Process:
    site = bench.site
    process = bench.processes.start(
        *between.far,
        *(program, "-listen", f"{FAR}:{DEPLOYED_PORT}", "-token", TOKEN),
        *("-certificate", f"{site.inner.chain}:{site.inner.key}"),
        *("-certificate", f"{site.outer.chain}:{site.outer.key}", "-ech-retry-key", site.key.path),
    )
    process.wait_event("listening")
    return process


def limit(name: str, direction: str) -> str:
    """MB/s that the window allows."""
    if name == "direct TCP":
        return ""
    if name == DEPLOYED and direction == "up":
        return f"{DEPLOYED_WINDOW / (ROUND_TRIP + HALF_CARRIED) / 1e6:.0f}"
    return f"{OWN_WINDOW / ROUND_TRIP / 1e6:.0f}"


def throughput(bench: Bench) -> Table:
    made = Table("Long path: 80 ms, 1 Gbit/s, one stream", ("", "", "MB/s", "the window's limit, MB/s"))
    if reason := missing():
        made.notes.append(reason)
        return made
    seconds = 4 if bench.quick else 8
    taken: dict[tuple[str, str], list[float]] = {}
    replies = {"yamux": "optimistic"}
    deployed = go_program(bench, "deployed_server")
    with path(bench, 40, 1000) as between, subjects(bench, between, replies, deployed) as compared:
        for _ in range(bench.rounds):
            for direction in ("down", "up"):
                for subject in compared:
                    found = bench.load(
                        *("bulk", subject.proxy, subject.address(TARGET_PORT), direction, seconds), prefix=between.near
                    )
                    taken.setdefault((direction, subject.name), []).append(found["bytes"] / found["seconds"] / 1e6)
    for (direction, name), values in taken.items():
        yardstick = median(taken[direction, "direct TCP"])
        made.rows.append((direction, name, with_ratio(median(values), yardstick, 0), limit(name, direction)))
    made.notes.append(
        f"The first {seconds} s of a stream, slow start and growing windows included; TCP buffers up to 64 MB."
    )
    if deployed is None:
        made.notes.append("The deployed Go server could not be built.")
    made.notes.append(
        f"The window's limit is one window in each round trip: ours of {OWN_WINDOW >> 20} MiB / 80 ms, which is more than "
        f"the link carries; upwards to the deployed server its {DEPLOYED_WINDOW >> 20} MiB / {(ROUND_TRIP + HALF_CARRIED) * 1e3:.0f} ms, "
        "since hashicorp/yamux gives half of a window back when that half has been read, and the link takes "
        f"{HALF_CARRIED * 1e3:.0f} ms to carry it."
    )
    return made


def lossy(bench: Bench) -> Table:
    made = Table(
        "A path with loss: 80 ms, 200 Mbit/s, 1 % of the packets lost each way",
        (
            "",
            "a small request, p50 in round trips",
            "a new connection, p50 in round trips",
            "bulk beside, MB/s",
            "bulk alone, MB/s",
        ),
    )
    if reason := missing():
        made.notes.append(reason)
        return made
    seconds = 4 if bench.quick else 8
    taken: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(bench.rounds):
        found: dict[str, list[float]] = {}
        # What a tunnel has learned of the path in one must not help it in the other.
        for load in ("beside", "bulk"):
            with (
                path(bench, 40, 200, percent=1, mtu=1500) as between,
                subjects(bench, between, {"yamux": "optimistic"}) as compared,
            ):
                for subject in compared:
                    way = (subject.proxy, subject.address(TARGET_PORT))
                    arguments = (*way, "down", seconds) if load == "bulk" else (*way, seconds)
                    result = bench.load(load, *arguments, prefix=between.near)
                    trips = [result[kind]["p50"] / 1e3 / ROUND_TRIP for kind in ("requests", "new") if kind in result]
                    found.setdefault(subject.name, []).extend([*trips, result["bytes"] / result["seconds"] / 1e6])
        for name, figures in found.items():
            taken.setdefault(name, []).append(tuple(figures))
    for name, rounds in taken.items():
        columns = [[figures[which] for figures in rounds] for which in range(4)]
        yardsticks = [median(figures[which] for figures in taken["direct TCP"]) for which in range(4)]
        cells = [
            f"{with_ratio(median(column), yardstick)}, {min(column):.2f} to {max(column):.2f}"
            for column, yardstick in zip(columns, yardsticks, strict=True)
        ]
        made.rows.append((name, *cells))
    made.notes.append(
        f"The first {seconds} s of a stream; TCP buffers up to 64 MB. Beside it, from 0.3 s on, 64 bytes there and back on one "
        "connection, in the second half a new connection each time. Behind the median the least and the most of all rounds."
    )
    return made


def round_trips(bench: Bench) -> Table:
    made = Table("Round trips to the first answer: 25 ms each way, session up", ("", "first", "next (median)"))
    if reason := missing():
        made.notes.append(reason)
        return made
    taken: dict[str, list[tuple[float, float]]] = {}
    replies = {f"yamux, {reply}": reply for reply in ("optimistic", "confirmed")}
    for _ in range(bench.rounds):
        with path(bench, 25, 0) as between, subjects(bench, between, replies) as compared:
            for subject in compared:
                found = bench.load("new", subject.proxy, subject.address(TARGET_PORT), 8, prefix=between.near)
                taken.setdefault(subject.name, []).append((found["first"] / 50, found["p50"] / 50))
    for name, pairs in taken.items():
        made.rows.append((name, *(f"{median(pair[which] for pair in pairs):.2f}" for which in (0, 1))))
    made.notes.append(
        "A new connection to the target each, from its first packet to the first byte back; the tunnel's session "
        "was dialed before."
    )
    return made
