"""`make bench`: prints every table and writes docs/benchmarks.md. With --only, prints some of them and writes nothing."""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from . import (
    ROOT,
    api,
    handshakes,
    latency,
    live_table,
    long_path,
    memory,
    sessions,
    shares,
    sing_box,
    stopped,
    throughput,
    worker,
)
from .report import Table, preface
from .subjects import Bench

WRITTEN = ROOT / "docs" / "benchmarks.md"


TABLES = {
    "throughput": throughput.table,
    "requests": latency.requests,
    "other-sessions": sessions.beside_others,
    "connections": latency.connections,
    "stopped-reader": stopped.table,
    "proxy-memory": memory.proxy,
    "server-memory": memory.server,
    "idle-sessions": sessions.idle,
    "long-path": long_path.throughput,
    "lossy-path": long_path.lossy,
    "round-trips": long_path.round_trips,
    "handshakes": handshakes.table,
    "handshakes-beside": sessions.handshakes,
    "shares": shares.table,
    "live-table": live_table.table,
    "api": api.table,
    "worker": worker.table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=1024, help="a stream; 8 streams carry an eighth each")
    parser.add_argument("--quick", action="store_true", help="one round of everything, small; writes nothing")
    parser.add_argument("--only", nargs="+", choices=TABLES, help="these tables; writes nothing")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.mebibytes = 1, 128
    # Before the run: of what is measured, and without its own load.
    head = preface(
        "python -m tests.bench", options.rounds, os.getloadavg()[0], list(filter(None, [sing_box.version()]))
    )
    made: list[Table] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for number, part in enumerate(options.only or TABLES):
            # Each table from fresh processes, so that none inherits the other's memory or windows.
            bench = Bench.make(Path(name) / str(number), options.rounds, options.mebibytes, options.quick)
            try:
                made.append(TABLES[part](bench))
            except (AssertionError, SystemExit) as error:
                # What the other tables took many minutes for is not lost with it.
                failed.append(f"{part}: {error}")
                made.append(Table(f"`{part}`", (), notes=["not measured: a program of it failed"]))
            finally:
                bench.stop()
            print(made[-1], flush=True)
    if not options.quick and not options.only:
        WRITTEN.write_text("\n".join([head, *map(str, made)]).rstrip() + "\n")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        raise SystemExit(str(error)) from None
