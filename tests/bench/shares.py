"""Where sender and receiver spend their CPU time, by perf: each sample belongs to one kind of work."""

import re
import shutil
from collections import Counter
from pathlib import Path

from harness.processes import Process, run

from .report import Table, median
from .subjects import Bench, local

SECONDS = 3
# In this order: the first that matches "OBJECT [k] FUNCTION". The native module comes without names of functions.
KINDS = (
    ("the kernel: copies", re.compile(r"\[k\] .*(copy_(to|from)|copy_user|memcpy|iter)")),
    ("the kernel: the rest", re.compile(r"\[k\]")),
    ("the native module: encryption, framing, sessions", re.compile(r"^_native")),
    ("the C library: copies", re.compile(r"mem(cpy|move|set)")),
)
OTHER = "the C library and the interpreter: the rest"
LINE = re.compile(r"^\s*(\d+(?:\.\d+)?)%\s+(.*)$")


def table(bench: Bench) -> Table:
    perf = shutil.which("perf")
    made = Table("Shares of CPU time with one bulk stream", ("", "down: sender", "receiver", "up: sender", "receiver"))
    if perf is None:
        made.notes.append("perf is not installed.")
        return made
    _, port = bench.target()
    tunnel = bench.tunnel()
    assert tunnel.client
    assert tunnel.server
    columns: dict[tuple[str, str], list[Counter[str]]] = {}
    for _ in range(bench.rounds):
        for direction in ("down", "up"):
            sender, receiver = (tunnel.server, tunnel.client) if direction == "down" else (tunnel.client, tunnel.server)
            load = bench.processes.start(
                bench.programs["load"], "bulk", tunnel.proxy, local(port), direction, str(2 * SECONDS + 2)
            )
            for role, process in (("sender", sender), ("receiver", receiver)):
                found = shares(bench, perf, process)
                if found is None:
                    made.notes.append("perf may not be used here (kernel.perf_event_paranoid).")
                    load.stop()
                    return made
                columns.setdefault((direction, role), []).append(found)
            load.wait_event("result", 60)
    for kind in (*(name for name, _ in KINDS), OTHER):
        cells = (f"{median(found[kind] for found in taken):.0f} %" for taken in columns.values())
        made.rows.append((kind, *cells))
    made.notes.append("Of each process's own CPU time, by where a sample falls. The client masks what goes up.")
    return made


def shares(bench: Bench, perf: str, process: Process) -> Counter[str] | None:
    """Percent of a process's samples by kind of work; None when perf is refused."""
    file = bench.folder / f"perf-{process.pid}.data"
    recorded = run(
        *(perf, "record", "-q", "-e", "cpu-clock", "-F", "499", "-p", str(process.pid), "-o", str(file)),
        *("--", "sleep", str(SECONDS)),
        timeout=60,
    )
    if recorded.returncode != 0:
        return None
    listed = run(perf, "report", "-i", str(file), "--stdio", "--sort", "dso,sym", "--percent-limit", "0", timeout=120)
    Path(file).unlink()
    found: Counter[str] = Counter()
    for line in listed.stdout.splitlines():
        match = LINE.match(line)
        if match:
            kind = next((name for name, pattern in KINDS if pattern.search(match[2].strip())), OTHER)
            found[kind] += float(match[1])  # type: ignore[assignment]
    return found
