"""Programs under test: started on free ports, watched line by line, always ended by their process id."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

# Only a defect takes as long, on a busy machine too.
READY_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0

T = TypeVar("T")


class Process:
    """A running program whose output lines are collected. Waits are bounded and fail with everything the program said."""

    def __init__(
        self, arguments: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.name = Path(self.arguments[0]).name
        self.variables = dict(env or {})
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._readers_left = 2
        self._process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._threads = [
            threading.Thread(target=self._collect, args=(pipe,), daemon=True)
            for pipe in (self._process.stdout, self._process.stderr)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_line(self, pattern: str, timeout: float = READY_TIMEOUT, *, after: int = 0) -> re.Match[str]:
        """The first line, from line number `after` on, in which the regular expression is found."""
        compiled = re.compile(pattern)
        return self._wait(lambda: self._search(compiled, after), f"a line with {pattern!r}", timeout)

    def wait_event(self, event: str, timeout: float = READY_TIMEOUT, **fields: Any) -> dict[str, Any]:
        """The first JSON line of this event with these fields."""

        def find() -> dict[str, Any] | None:
            return next((found for found in self.events(event) if fields.items() <= found.items()), None)

        return self._wait(find, f"an event {event!r} {fields or ''}", timeout)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Every JSON line of this event so far."""
        parsed = (json.loads(line) for line in list(self.lines) if line.startswith("{"))
        return [line for line in parsed if line.get("event") == event]

    def wait(self, timeout: float = READY_TIMEOUT) -> int:
        """The exit code, once the program has ended and all it said was read."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._complaint(f"did not end within {timeout} s")) from None
        for thread in self._threads:
            thread.join(STOP_TIMEOUT)
        return code

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """Ends the program: asks first, then kills."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT)

    def kill(self) -> None:
        if self.running:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)

    def resident_kib(self) -> int:
        """Resident memory (VmRSS) now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found, status
        return int(found.group(1))

    def descriptors(self) -> int:
        """Open file descriptors now."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _collect(self, pipe: Any) -> None:
        for line in pipe:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        pipe.close()
        with self._changed:
            self._readers_left -= 1
            self._changed.notify_all()

    def _search(self, pattern: re.Pattern[str], after: int) -> re.Match[str] | None:
        return next((found for line in self.lines[after:] if (found := pattern.search(line))), None)

    def _wait(self, find: Callable[[], T | None], what: str, timeout: float) -> T:
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if (found := find()) is not None:
                    return found
                if self._readers_left == 0:
                    raise AssertionError(self._complaint(f"ended without {what}"))
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(self._complaint(f"no {what} within {timeout} s"))
                self._changed.wait(left)

    def _complaint(self, what: str) -> str:
        return f"{self.name}: {what}\n$ {' '.join(self.arguments)}\n{self.output}"


class Processes:
    """Starts programs and ends them all, last first."""

    def __init__(self) -> None:
        self.started: list[Process] = []

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        process = Process(arguments, env=env, cwd=cwd)
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Ends them all. Fails if one of ours has said a secret, on its output or in its log file."""
        for process in reversed(self.started):
            process.stop()
        said = [f"{secret[:4]}... in what {process.name} said" for process in self.started for secret in leaks(process)]
        assert not said, said

    def report(self) -> str:
        """What each program said, for a failed test."""
        return "\n".join(f"--- {' '.join(process.arguments)}\n{process.output}" for process in self.started)


# What of our own program is not to be shown to anybody who reads its output.
_SECRET_OPTIONS = ("--token", "--password", "--status-token")
_SECRET_VARIABLES = ("TOKEN", "PASSWORD")
# These print secrets because they are asked to.
_TELLING = {"share", "keygen", "config", "env"}


def leaks(process: Process) -> list[str]:
    """The secrets that a program was given and has said, and private keys."""
    arguments = process.arguments
    if process.name != "ech-workers" or _TELLING.intersection(arguments[1:2]):
        return []
    secrets = {value for option, value in itertools.pairwise(arguments) if option in _SECRET_OPTIONS}
    secrets |= {value for name, value in process.variables.items() if name.endswith(_SECRET_VARIABLES)}
    texts = [process.output]
    for option, value in itertools.pairwise(arguments):
        file = Path(value)
        if option == "--log-file" and file.is_file():
            texts.append(file.read_text(errors="replace"))
        if option == "--token-file" and file.is_file():
            secrets |= {line.strip() for line in file.read_text(errors="replace").splitlines()}
    secrets = {secret for secret in secrets if len(secret) >= 4 and not secret.startswith("#")} | {"PRIVATE KEY-----"}
    return [secret for secret in sorted(secrets) if any(secret in text for text in texts)]


def run(
    *arguments: str | Path, timeout: float = 60.0, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; output as text."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        check=False,
    )


def python_program(module: str) -> list[str]:
    """How to start one of this package's modules as a program of its own."""
    return [sys.executable, "-m", module]
