"""Resident memory: the proxy at the start, with idle streams, after and during bulk; the server per session and stream."""

import resource
import time
from typing import TYPE_CHECKING

from harness.tunnel import PATH, SERVER_NAME, TOKEN

from .report import Table, median
from .subjects import Bench, Subject, local, memory_kib
from .throughput import Target, measure

if TYPE_CHECKING:
    from harness.processes import Process

IDLE = 1000
SESSIONS, STREAMS = 2000, 20_000
# A load program holds three descriptors for a stream; the usual hard limit must suffice it.
LOADS = 5
SETTLED = 1.0
# Descriptors that a server keeps for handshakes, visitors, look-ups and itself (`Budget` in rust/tunnel/src/descriptors.rs), and some more sessions.
RESERVED = 3500


def proxy(bench: Bench) -> Table:
    _, port = bench.target()
    taken: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        for name, value in (*idle_streams(bench, port), *bulk(bench)):
            taken.setdefault(name, []).append(value)
    made = Table("Memory of `ech-workers proxy --plain`, interpreter included", ("", "resident"))
    made.rows += [(name, f"{median(values):.1f}") for name, values in taken.items()]
    made.notes.append("The server's address and the ECH configuration were given, so that nothing was looked up.")
    return made


def idle_streams(bench: Bench, port: int) -> list[tuple[str, float]]:
    server, proxy = bench.ends()
    ends = proxy.process, server.process
    start = memory_kib(proxy.process)
    # The first connection brings what all of them share.
    levels = []
    for count in (1, IDLE):
        load = bench.processes.start(bench.programs["load"], "idle", local(proxy.port), local(port), str(count))
        opened = load.wait_event("open", 60)
        assert opened["failed"] == 0, opened
        time.sleep(SETTLED)
        levels.append([memory_kib(end) for end in ends])
        load.stop()
    for end in ends:
        end.stop()
    one, many = levels
    client, serving = ((after - before) / (IDLE - 1) for before, after in zip(one, many, strict=True))
    return [
        ("at the start, session up, MB", start / 1024),
        (f"an idle stream ({IDLE} open), KiB", client),
        ("the same stream in the server, KiB", serving),
    ]


def bulk(bench: Bench) -> list[tuple[str, float]]:
    found = []
    for name, streams, size in (
        ("after one bulk stream: above the start, MB", 1, bench.mebibytes),
        ("8 bulk streams: the peak above the start, MB", 8, bench.mebibytes // 8),
    ):
        target = Target(max(size, 1) << 20)
        server, proxy = bench.ends()
        start = memory_kib(proxy.process)
        subject = Subject("yamux", proxy.process, server.process, local(proxy.port), local)
        measure(subject, target, "down", streams)
        time.sleep(SETTLED)
        field = "VmRSS" if streams == 1 else "VmHWM"
        found.append((name, (memory_kib(proxy.process, field) - start) / 1024))
        proxy.process.stop()
        server.process.stop()
    return found


def server(bench: Bench) -> Table:
    """One round: thousands of handshakes take long, and what they leave behind hardly varies."""
    raise_descriptor_limit()
    available = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    sessions = 200 if bench.quick else min(SESSIONS, available // 3)
    # The server has a descriptor for each; the programs beside it have fewer.
    streams = min(sessions * STREAMS // SESSIONS, available - sessions - RESERVED)
    start, with_sessions = server_memory(bench, sessions, 0)
    before, with_streams = server_memory(bench, sessions, streams)
    made = Table("Memory of `ech-workers server`", ("", "resident"))
    made.rows += [
        ("at the start, MB", f"{start / 1024:.1f}"),
        (f"a session, KiB ({sessions:,} sessions)", f"{(with_sessions - start) / sessions:.1f}"),
        (
            f"an idle stream, KiB ({streams:,} streams)",
            f"{(with_streams - before - (with_sessions - start)) / streams:.1f}",
        ),
    ]
    if streams < STREAMS and not bench.quick:
        made.notes.append(f"Not {STREAMS:,} streams: this user may have only {available:,} descriptors open.")
    return made


def server_memory(bench: Bench, sessions: int, streams: int) -> tuple[int, int]:
    """KiB of a new server at the start, and when all of them are up."""
    server = bench.site.server("--max-streams", "2048", "--max-sessions", str(sessions + 100))
    ech = bench.folder / "ech.bin"
    ech.write_bytes(bench.site.key.config_list)
    start = memory_kib(server.process)
    started: list[Process] = []
    for _ in range(LOADS):
        target, port = bench.target()
        load = bench.processes.start(
            *(bench.programs["sessions"], local(server.port), SERVER_NAME, PATH, TOKEN, ech),
            *(bench.site.authority.path, local(port), str(sessions // LOADS), str(streams // LOADS)),
        )
        started += [load, target]
    for load in started[::2]:
        load.wait_event("streams", 240)
    time.sleep(SETTLED)
    settled = memory_kib(server.process)
    for process in (*started, server.process):
        process.stop()
    return start, settled


def raise_descriptor_limit() -> None:
    """As many descriptors for the programs started from here as the system lets this user have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = STREAMS + SESSIONS + 1000
    for limit in ((wanted, max(wanted, hard)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        except (ValueError, OSError):
            continue
        return
