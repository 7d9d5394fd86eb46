"""CPU milliseconds of a TLS handshake, both ends together: from the crate's own benchmark."""

import re

from harness.processes import run

from . import ROOT
from .report import Table, median, with_ratio
from .subjects import BUILD_TIMEOUT, Bench

LINE = re.compile(r"(?m)^(\S+)\s+(full|resumed), (without|with) ECH\s+([\d.]+) CPU ms$")


def table(bench: Bench) -> Table:
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(bench.rounds):
        finished = run(
            *("cargo", "bench", "--locked", "-p", "ech-workers-tls", "--bench", "handshakes"),
            *("--", "50" if bench.quick else "300"),
            cwd=ROOT,
            timeout=BUILD_TIMEOUT,
        )
        if finished.returncode != 0:
            raise SystemExit(finished.stderr)
        for profile, kind, ech, milliseconds in LINE.findall(finished.stdout):
            taken.setdefault((profile, f"{kind}, {ech} ECH"), []).append(float(milliseconds))
    made = Table("Handshakes, client and server together", ("profile", "", "CPU ms"))
    for (profile, kind), values in taken.items():
        yardstick = median(taken[profile, "full, without ECH"])
        made.rows.append((profile, kind, with_ratio(median(values), yardstick)))
    return made
