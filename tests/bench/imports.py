"""What the imports cost: `python -m tests.bench.imports` prints the table of docs/performance.md.

Each row is measured in a process of its own, after the imports it comes on top of; the median of several.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from harness.authority import Authority  # noqa: E402
from harness.processes import Processes  # noqa: E402
from harness.tunnel import Site  # noqa: E402

# What `ech-workers proxy --plain` loads at the start, in this order.
START = ("click", "msgspec", "ech_workers._native", "ech_workers.cli.proxy")
# What is loaded only when it is needed, on top of that.
LATER = {
    "dns.message": "a look-up (not with a warm cache, nor with `--ech-config` and `--server-ip`)",
    "platformdirs": "the cache's folder, unless `--cache-dir` says it",
    "ech_workers.status.table": "the live table (rich)",
    "ech_workers.status.port": "`--status-listen` (websockets)",
    "asyncio": "`ech_workers.aio`",
}

MEASURE = """
import importlib, json, re, sys, time
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
*before, name = sys.argv[1:]
for each in before:
    importlib.import_module(each)
modules, memory, started = len(sys.modules), resident(), time.perf_counter()
importlib.import_module(name)
seconds = time.perf_counter() - started
print(json.dumps([resident() - memory, seconds * 1000, len(sys.modules) - modules, memory]))
"""


def measure(name: str, before: Sequence[str], rounds: int) -> list[float]:
    """KiB more resident, milliseconds, modules, KiB before."""
    command = [sys.executable, "-c", MEASURE, *before, name]
    found = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def whole(rounds: int) -> dict[str, float]:
    """MiB of `proxy --plain` once its session is up, without and with a look-up."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            processes = Processes()
            try:
                site = Site.make(Path(folder) / "site", processes, Authority(Path(folder) / "authority"))
                server = site.server()
                known = ("--server-ip", "127.0.0.1", "--ech-config", site.key.base64)
                for case, arguments in (("everything given", known), ("looked up", ())):
                    proxy = site.proxy(server.port, *arguments)
                    found.setdefault(case, []).append(proxy.process.resident_kib() / 1024)
                    proxy.process.stop()
            finally:
                processes.stop()
    return {case: statistics.median(values) for case, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| import | MB resident | ms | modules | when |\n|---|--:|--:|--:|---|")
    bare = measure("sys", (), rounds)[3]
    print(f"| Python {sys.version_info.major}.{sys.version_info.minor} alone | {bare / 1024:.1f} | | | |")
    for number, name in enumerate(START):
        row(name, measure(name, START[:number], rounds), "at the start")
    for name, when in LATER.items():
        row(name, measure(name, START, rounds), when)
    print("\n| `proxy --plain`, session up | MB resident |\n|---|--:|")
    for case, mebibytes in whole(min(rounds, 3)).items():
        print(f"| {case} | {mebibytes:.1f} |")


def row(name: str, found: Sequence[float], when: str) -> None:
    kibibytes, milliseconds, modules, _ = found
    print(f"| `{name}` | {kibibytes / 1024:.1f} | {milliseconds:.0f} | {modules:.0f} | {when} |")


if __name__ == "__main__":
    main()
