"""Tables of medians and ratios, on the screen and in docs/benchmarks.md."""

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from harness.processes import run

from . import ROOT


@dataclass
class Table:
    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"## {self.title}", ""]
        if self.rows:
            lines += [f"| {' | '.join(self.columns)} |", f"|---|{'--:|' * (len(self.columns) - 1)}"]
            lines += [f"| {' | '.join(row)} |" for row in self.rows]
        if self.rows and self.notes:
            lines.append("")
        return "\n".join([*lines, *(f"- {note}" for note in self.notes), ""])


def median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def with_ratio(value: float, yardstick: float, digits: int = 2) -> str:
    """The value, and in brackets its ratio to the yardstick's."""
    return f"{value:.{digits}f} ({value / yardstick:.2f})" if yardstick > 0 else f"{value:.{digits}f}"


def preface(command: str, rounds: int, load_before: float, others: Sequence[str]) -> str:
    return f"""# Benchmarks

One run of `{command}` on {datetime.now(UTC):%Y-%m-%d}; it writes this file. Medians of {rounds}, interleaved: all that is
compared ran by turns in the same run, on the same cores as the load itself. Machines differ and are noisy: only the
ratios (in brackets, to the first row of the same kind) mean something, and only within one run.

- Machine: {processor()}, {os.cpu_count()} cores, Linux {platform.release()}; load average before the run {load_before:.1f}
- Versions: {", ".join(versions(others))}
- The tunnel: TLS 1.3 with ECH, WebSocket with masking, yamux unless said otherwise; the program's defaults
"""


def processor() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def versions(others: Sequence[str]) -> list[str]:
    commit = run("git", "describe", "--always", "--dirty", cwd=ROOT).stdout.strip()
    return [
        f"ech-workers {commit}",
        run("rustc", "--version").stdout.strip(),
        f"Python {platform.python_version()}",
        *others,
    ]
