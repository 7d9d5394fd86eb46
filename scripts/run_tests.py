"""Runs the Python tests: most of them several at a time, then those that must be alone.

    python scripts/run_tests.py [ARGUMENTS OF PYTEST]

They wait for events most of the time, so that twice as many processes as there are cores keep the cores busy. TEST_WORKERS=N sets
another number. The exit code is pytest's; of two it is the first that is not 0.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "target" / "tests"
MOST_WORKERS = 8
# pytest's exit code if nothing is selected.
NO_TESTS = 5
FAILED = 1


def workers() -> int:
    given = os.environ.get("TEST_WORKERS")
    return int(given) if given else min(2 * (os.cpu_count() or 1), MOST_WORKERS)


def pytest(report: Path, marks: str, arguments: list[str]) -> int:
    """Runs the tests with these marks; the exit code. What they came to is in the report (JUnit's XML) then."""
    report.unlink(missing_ok=True)
    words = ["-m", marks, f"--junitxml={report}", "--durations=20", *arguments]
    return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=False).returncode


def outcomes(report: Path) -> dict[tuple[str, str], str]:
    """How each test ended: failed, skipped or passed. A module that is skipped as a whole is in both reports."""
    found: dict[tuple[str, str], str] = {}
    if report.exists():
        for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 (pytest has just written it)
            name = case.get("classname", ""), case.get("name", "")
            how = {child.tag for child in case}
            if how & {"failure", "error"} or found.get(name) == "failed":
                found[name] = "failed"
            else:
                found[name] = "skipped" if "skipped" in how else "passed"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", dest="marks", default="")
    given, arguments = parser.parse_known_args()
    chosen = f" and ({given.marks})" if given.marks else ""
    REPORTS.mkdir(parents=True, exist_ok=True)
    together, alone = REPORTS / "together.xml", REPORTS / "alone.xml"
    began = time.monotonic()
    # A file's tests stay in one process and in their order: they share what the file's fixtures have started.
    spread = [f"--numprocesses={workers()}", "--dist=loadfile", "--no-loadscope-reorder"]
    codes = [pytest(together, f"not alone{chosen}", [*spread, *arguments])]
    between = time.monotonic()
    # Not if it was interrupted or could not begin.
    if codes[0] in (0, FAILED, NO_TESTS):
        codes.append(pytest(alone, f"alone{chosen}", arguments))
    over = time.monotonic()
    ended = outcomes(together) | outcomes(alone)
    total = Counter(ended.values())
    spent = os.times()
    print(
        f"\n{len(ended)} tests: {total['passed']} passed, {total['skipped']} skipped, {total['failed']} failed;"
        f" {between - began:.0f} s with {workers()} at a time and {over - between:.0f} s alone,"
        f" {spent.children_user + spent.children_system:.0f} s of CPU time"
    )
    failed = [code for code in codes if code not in (0, NO_TESTS)]
    return failed[0] if failed else min(codes)


if __name__ == "__main__":
    sys.exit(main())
