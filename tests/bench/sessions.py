"""Many sessions: small requests beside the bulk of others, handshakes beside traffic, and how many may be idle."""

import re
import resource
import time
from pathlib import Path

from harness.tunnel import PATH, SERVER_NAME, TOKEN

from .memory import raise_descriptor_limit
from .report import Table, median, with_ratio
from .subjects import Bench, cpu_seconds, local, memory_kib

SESSIONS = 8
# Seconds after which a bulk stream ends by itself.
LONG = 120
# The lowest priority.
BEHIND = ("nice", "-n", "19")
# Bytes a second.
GIGABIT = 125_000_000
AT_A_TIME = 8
# Descriptors that a process needs beside those of its sessions and streams.
RESERVE = 500
# More take minutes to set up on two cores.
IDLE_MAX = 10_000
IDLE_SECONDS = 5.0


def beside_others(bench: Bench) -> Table:
    """Small requests on one session, while every other session of the same processes carries a bulk stream.

    Each load is a process of its own, with a target of its own: the requests wait for nothing but the tunnel. The programs that make
    the bulk run at the lowest priority: what is asked is how the tunnel shares its time, not how the system shares out its cores.
    """
    server, proxy = bench.ends("--sessions", str(SESSIONS))
    wait_connections(server.port, SESSIONS)
    _, port = bench.target()
    count = 200 if bench.quick else 1000
    others = SESSIONS - 1
    bulk_loads: dict[str, tuple[str, ...]] = {
        "alone": (),
        f"beside {others} bulk streams, 1 Gbit/s together": ("paced", str(LONG), str(GIGABIT // others)),
        f"beside {others} bulk streams, as fast as they can": ("bulk", "down", str(LONG)),
    }
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(bench.rounds):
        for case, kind in bulk_loads.items():
            for name, way in (("direct TCP", "-"), ("ech-workers", local(proxy.port))):
                bulk = []
                for _ in range(others if kind else 0):
                    target, to = bench.target(prefix=BEHIND)
                    load = (str(bench.programs["load"]), kind[0], way, local(to), *kind[1:])
                    bulk += [bench.processes.start(*BEHIND, *load), target]
                    # One after the other: each goes to a session without one.
                    time.sleep(0.2)
                # So these go to the only one that is left without.
                found = bench.load("requests", way, local(port), count)
                taken.setdefault((case, name), []).append((found["p50"], found["p99"]))
                assert all(process.running for process in bulk)
                for process in bulk:
                    process.stop()
    made = Table(f"Small requests on one of {SESSIONS} sessions", ("64 bytes there and back", "", "p50 ms", "p99 ms"))
    for (case, name), pairs in taken.items():
        columns = [
            with_ratio(median(pair[which] for pair in pairs), median(pair[which] for pair in taken[case, "direct TCP"]))
            for which in (0, 1)
        ]
        made.rows.append((case, name, *columns))
    made.notes.append(
        "One every 2 ms. The bulk streams go down, each on a session of its own; all sessions are of one proxy and one"
        " server. With direct TCP each has a connection of its own. Each load and each target is a process; those of the"
        " bulk run at the lowest priority, so that a request waits for the tunnel rather than for its turn among them. As"
        " fast as they can: both cores are busy, and most of what a request waits for is a core, once at each of its six"
        " steps from program to program."
    )
    return made


def wait_connections(port: int, count: int) -> None:
    """Until the server on this port has so many connections, and a moment for the sessions on them."""
    wanted = re.compile(rf" 0100007F:{port:04X} \S+ 01 ")
    deadline = time.monotonic() + 30
    while len(wanted.findall(Path("/proc/net/tcp").read_text())) < count:
        assert time.monotonic() < deadline, f"not {count} sessions"
        time.sleep(0.05)
    time.sleep(0.5)


def handshakes(bench: Bench) -> Table:
    """Full and resumed handshakes with a server that carries a bulk stream at the same time."""
    _, port = bench.target()
    server, proxy = bench.ends()
    ech = ech_file(bench)
    seconds = 2 if bench.quick else 5
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(bench.rounds):
        alone = bench.load("bulk", local(proxy.port), local(port), "down", seconds)
        taken.setdefault("", []).append((0, rate(alone)))
        for kind in ("full", "resumed"):
            load = bench.processes.start(
                *(bench.programs["hellos"], local(server.port), SERVER_NAME, ech, bench.site.authority.path),
                *(kind, str(AT_A_TIME), str(seconds + 1)),
            )
            bulk = bench.load("bulk", local(proxy.port), local(port), "down", seconds)
            found = load.wait_event("result", 60)
            assert found["failed"] == 0, found
            if kind == "resumed":
                # All but the first few, which had no ticket yet.
                assert found["resumed"] >= found["done"] * 0.8, found
            taken.setdefault(kind, []).append((found["done"] / found["seconds"], rate(bulk)))
    made = Table(
        f"Handshakes beside a bulk stream, {AT_A_TIME} at a time",
        ("", "handshakes a second", "the bulk stream, MB/s"),
    )
    yardstick = median(bulk for _, bulk in taken[""])
    for kind, pairs in taken.items():
        carried = with_ratio(median(pair[1] for pair in pairs), yardstick, 0)
        made.rows.append((kind or "none", f"{median(pair[0] for pair in pairs):.0f}" if kind else "", carried))
    made.notes.append(
        "Each with ECH and a small HTTP answer behind it. The clients that make them run on the same cores; in brackets the"
        " ratio to the stream alone."
    )
    return made


def rate(found: dict[str, float]) -> float:
    return found["bytes"] / found["seconds"] / 1e6


def ech_file(bench: Bench) -> Path:
    file = bench.folder / "ech.bin"
    file.write_bytes(bench.site.key.config_list)
    return file


def idle(bench: Bench) -> Table:
    """As many sessions as descriptors allow, of which one in a hundred makes requests. One round, like the memory of a server."""
    raise_descriptor_limit()
    available = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = 400 if bench.quick else min(IDLE_MAX, available - available // 100 - RESERVE)
    active = count // 100
    server = bench.site.server("--max-sessions", str(count + 100))
    _, port = bench.target()
    start = memory_kib(server.process)
    load = bench.processes.start(
        *(bench.programs["sessions"], local(server.port), SERVER_NAME, PATH, TOKEN, ech_file(bench)),
        *(bench.site.authority.path, local(port), str(count), str(active), "200" if bench.quick else "2000"),
    )
    load.wait_event("sessions", 600)
    load.wait_event("streams", 60)
    settled = memory_kib(server.process)
    found = load.wait_event("requests", 120)
    before = cpu_seconds(server.process)
    time.sleep(IDLE_SECONDS)
    share = (cpu_seconds(server.process) - before) / IDLE_SECONDS
    made = Table(f"A server with {count:,} sessions, {active} of them active", ("", ""))
    made.rows += [
        ("a request of an active one, p50 ms", f"{found['p50']:.2f}"),
        ("p99 ms", f"{found['p99']:.2f}"),
        ("memory of a session, KiB", f"{(settled - start) / count:.1f}"),
        ("CPU of the server when all are idle, % of a core", f"{share * 100:.1f}"),
    ]
    limit = f"{IDLE_MAX:,}, which take long enough to set up" if count == IDLE_MAX else f"{available:,} descriptors"
    made.notes.append(f"One process has all the client's ends. The limit was {'--quick' if bench.quick else limit}.")
    return made
