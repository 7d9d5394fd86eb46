"""tlsfuzzer's TLS 1.3 scripts against our server: python -m conformance.tlsfuzzer CHECKOUT [SCRIPT...]

CHECKOUT is a copy of https://github.com/tlsfuzzer/tlsfuzzer, which no package index has; the tlslite-ng that it needs is on PyPI.
`tlsfuzzer.json` beside this file lists the scripts that are run. What we do not pass, or cannot, stands there with its reason.
The exit code is 1 if a probe fails that is not expected to. What is expected to fail and does not is said: many scripts take a
sample of their probes, so it may fail the next time.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import trustme

from harness.processes import Processes, run
from harness.tunnel import COMMAND, TOKEN

EXPECTATIONS = Path(__file__).with_suffix(".json")
# The slowest script makes 60 connections; some wait seconds for a server that says nothing more.
SCRIPT_TIMEOUT = 600.0


@dataclass(frozen=True)
class Script:
    """What is expected of one of tlsfuzzer's scripts."""

    name: str
    arguments: list[str]
    failures: dict[str, str]
    """Probes (regular expressions for their whole names) that fail, and why."""

    def expected(self, probe: str) -> bool:
        return any(re.fullmatch(pattern, probe) for pattern in self.failures)

    def outdated(self, failed: Iterable[str]) -> list[str]:
        """Expectations that no failure bears out."""
        return [pattern for pattern in self.failures if not any(re.fullmatch(pattern, probe) for probe in failed)]


@dataclass(frozen=True)
class Outcome:
    """How a script's probes ended."""

    passed: list[str]
    failed: dict[str, str]
    """Probes and the last line of their trouble."""

    @classmethod
    def read(cls, output: str) -> "Outcome":
        passed: list[str] = []
        failed: dict[str, str] = {}
        probe, trouble = "", ""
        for line in output.splitlines():
            if begins := re.fullmatch(r"\"?(.*?)\"?(?: repeat \d+)? ?\.\.\.", line):
                if trouble:
                    failed[probe] = trouble
                probe, trouble = begins[1], ""
            elif line == "OK":
                passed.append(probe)
            elif line == "Test end":
                break
            elif line == "Error while processing" or re.match(r"[\w.]+(Error|Exception|Warning)\b", line):
                trouble = line
        if trouble:
            failed[probe] = trouble
        return cls(passed, failed)


def scripts() -> tuple[list[Script], dict[str, str]]:
    """The scripts to run, and those left out with the reason."""
    expectations = json.loads(EXPECTATIONS.read_text())
    wanted = [
        Script(name, entry.get("arguments", []), entry.get("failures", {}))
        for name, entry in expectations["scripts"].items()
    ]
    return wanted, expectations["left out"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a copy of https://github.com/tlsfuzzer/tlsfuzzer")
    parser.add_argument("script", nargs="*", help="only these")
    options = parser.parse_args()
    folder = options.checkout / "scripts"
    wanted, left_out = scripts()
    if not folder.is_dir():
        parser.error(f"{folder} does not exist: git clone https://github.com/tlsfuzzer/tlsfuzzer")
    unknown = (
        {path.name for path in folder.glob("test-tls13-*.py")} - {script.name for script in wanted} - set(left_out)
    )
    for name in sorted(unknown):
        print(f"{name}: neither listed nor left out in {EXPECTATIONS.name}")
    if options.script:
        wanted = [script for script in wanted if script.name in options.script]

    processes = Processes()
    with tempfile.TemporaryDirectory() as files:
        try:
            port = start_server(processes, Path(files))
            surprises = sum(judge(script, options.checkout, port) for script in wanted)
        finally:
            processes.stop()
    print(f"{len(wanted)} scripts, {surprises} surprises; {len(left_out)} scripts are left out, each with its reason")
    return 1 if surprises or unknown else 0


def start_server(processes: Processes, folder: Path) -> int:
    """Our server with an RSA certificate, which most scripts need."""
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    certificate = authority.issue_cert("localhost", key_type=trustme.KeyType.RSA)
    chain, key = folder / "chain.pem", folder / "key.pem"
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(chain, append=number > 0)
    certificate.private_key_pem.write_to_path(key)
    program = processes.start(
        COMMAND, "server", "--listen", "127.0.0.1:0", "--cert", chain, "--key", key, "--token", TOKEN
    )
    return int(program.wait_line(r"listening on \S*:(\d+)\b")[1])


def judge(script: Script, checkout: Path, port: int) -> int:
    """Runs a script and says what is not as expected; how much that is."""
    program: list[str | Path] = [sys.executable, checkout / "scripts" / script.name]
    finished = run(
        *program,
        *("-h", "localhost", "-p", str(port)),
        *script.arguments,
        timeout=SCRIPT_TIMEOUT,
        env={"PYTHONPATH": str(checkout)},
    )
    outcome = Outcome.read(finished.stdout)
    failed = {probe: why for probe, why in outcome.failed.items() if not script.expected(probe)}
    print(f"{script.name}: {len(outcome.passed)} passed, {len(outcome.failed) - len(failed)} failed as expected")
    for probe, why in failed.items():
        print(f"    failed: {probe}: {why}")
    for pattern in script.outdated(outcome.failed):
        print(f"    nothing failed that {EXPECTATIONS.name} expects to: {pattern}")
    if not outcome.passed and not outcome.failed:
        print(*(finished.stdout + finished.stderr).splitlines()[-5:], sep="\n")
        return 1
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
