"""Log lines: Python's logging, set up for a program that runs in a terminal or under a service manager."""

from __future__ import annotations

import calendar
import collections
import contextlib
import io
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import time
from typing import TYPE_CHECKING

from ech_workers._logging import ABOUT
from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ech_workers.options.client import LogTuning

__all__ = ["LogFile", "Recent", "configure", "recent"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(
    tuning: LogTuning,
    file: Path | None,
    *,
    verbose: bool = False,
    level: str | None = None,
    secrets: Iterable[str | None] = (),
) -> None:
    """Sends the package's log lines to ``file`` or to standard error. level: instead of the configured one. secrets: what
    no line may show. Raises ConfigError."""
    if file is None:
        handler: logging.Handler = _StandardError()
    else:
        try:
            handler = LogFile(file, max_size=tuning.log_max_size, max_age=tuning.log_max_age, keep=tuning.log_keep)
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror}", option="--log-file") from None
    hidden = [secret for secret in secrets if secret is not None and len(secret) >= _SECRET_LENGTH]
    handler.setFormatter(_formatter(tuning.log_format, is_file=file is not None, hidden=hidden))
    logger = logging.getLogger("ech_workers")
    fresh = Recent()
    fresh.setFormatter(_Text(hidden))
    kept = [one for one in logger.handlers if isinstance(one, Recent)]
    for one in kept:
        # Whoever follows the log goes on to do so.
        one.setFormatter(fresh.formatter)
    old = [other for other in logger.handlers if not isinstance(other, Recent)]
    logger.handlers = [handler, *(kept or [fresh])]
    for other in old:
        other.close()
    logger.setLevel(logging.DEBUG if verbose else _LEVELS[level or tuning.log_level])
    logger.propagate = False
    # Where the engine logs what happened to single targets.
    logging.getLogger("ech_workers.tunnel.targets").disabled = not tuning.log_targets


# What is shorter is no secret, and may be a part of any word.
_SECRET_LENGTH = 4


def _formatter(name: str, *, is_file: bool, hidden: list[str]) -> logging.Formatter:
    if name == "json":
        return _Json(hidden)
    if name == "journal" or (name == "auto" and not is_file and _is_journal()):
        return _Journal(hidden)
    return _Text(hidden)


def _is_journal() -> bool:
    """Whether standard error is systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


class _Text(logging.Formatter):
    """``TIME LEVEL MESSAGE``."""

    def __init__(self, hidden: list[str], form: str = "%(asctime)s %(levelname)-7s %(message)s") -> None:
        super().__init__(form, "%Y-%m-%d %H:%M:%S")
        self._hidden = hidden

    def format(self, record: logging.LogRecord) -> str:
        return self._shown(super().format(record))

    def _shown(self, text: str) -> str:
        for secret in self._hidden:
            text = text.replace(secret, "...")
        return text


class _Journal(_Text):
    """The priority that systemd reads (sd-daemon(3)) and the message: the journal has the time already."""

    def __init__(self, hidden: list[str]) -> None:
        super().__init__(hidden, "%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        return f"<{priority if record.levelno >= logging.INFO else 7}>{' '.join(super().format(record).splitlines())}"


class _Json(_Text):
    """An object a line: time (RFC 3339, UTC), level, logger, message, and what the record knows of layer, code, server
    and session."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ABOUT:
            value = getattr(record, name, None)
            if value is not None:
                fields[name] = value
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return self._shown(json.dumps(fields, ensure_ascii=False))


class Recent(logging.Handler):
    """Keeps the last lines, and hands new ones to whoever follows the log. A follower that is slow misses lines."""

    LINES = 500
    QUEUE = 1000

    def __init__(self) -> None:
        super().__init__()
        self._lines: collections.deque[str] = collections.deque(maxlen=self.LINES)
        self._followers: set[queue.SimpleQueue[str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        line = self.format(record)
        self._lines.append(line)
        for follower in self._followers:
            if follower.qsize() < self.QUEUE:
                follower.put(line)

    def lines(self, count: int) -> list[str]:
        """The last lines, at most ``count``."""
        lines = list(self._lines)
        return lines[max(0, len(lines) - count) :]

    @contextlib.contextmanager
    def followed(self, count: int) -> Iterator[tuple[list[str], queue.SimpleQueue[str]]]:
        """The last lines, at most ``count``, and those that come after them, while entered: each is in one of the two."""
        follower: queue.SimpleQueue[str] = queue.SimpleQueue()
        with self._held():
            self._followers.add(follower)
            last = self.lines(count)
        try:
            yield last, follower
        finally:
            with self._held():
                self._followers.discard(follower)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def recent() -> Recent | None:
    """The handler that ``configure`` made."""
    found = (one for one in logging.getLogger("ech_workers").handlers if isinstance(one, Recent))
    return next(found, None)


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Looks sys.stderr up for each line: the live table puts its own in its place while it is on the screen."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):  # type: ignore[no-untyped-def]
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the base class's name)
        """There is nowhere left to say it; a traceback for each line would not help."""


class LogFile(logging.handlers.WatchedFileHandler):
    """Appends to a file, goes on in a new one when that was renamed, begins a new one at a size or an age, and outlives a
    full disk.

    max_size: bytes; max_age: seconds; 0: none. keep: how many old files stay, FILE.1 the youngest. What cannot be written
    is counted, said once on standard error, and noted in the file when it takes lines again.
    """

    def __init__(self, file: Path, *, max_size: int = 0, max_age: float = 0.0, keep: int = 5) -> None:
        self._lost = 0
        self._max_size, self._max_age, self._keep = max_size, max_age, keep
        super().__init__(file, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        # Without buffers: what the disk did not take must not come back to fail with the next line.
        raw = open(self.baseFilename, "ab", buffering=0)  # noqa: PTH123, SIM115 (closed by the base class)
        return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)

    def emit(self, record: logging.LogRecord) -> None:
        lost = self._lost
        if self._is_due():
            self._turn_over()
        super().emit(record)
        if lost and self._lost == lost:
            self._lost = 0
            lines = f"{lost} log lines were lost" if lost > 1 else "a log line was lost"
            self.emit(logging.makeLogRecord({**vars(record), "msg": f"{lines} before this one", "args": None}))

    def _is_due(self) -> bool:
        if self.stream is None or not (self._max_size or self._max_age):
            return False
        try:
            status = os.fstat(self.stream.fileno())
        except OSError:
            return False
        if not status.st_size:
            return False
        if self._max_size and status.st_size >= self._max_size:
            return True
        return bool(self._max_age) and time.time() - self._began() >= self._max_age

    def _began(self) -> float:
        """When the first line was written: there is no portable time of creation, and the last change is of every line."""
        try:
            with open(self.baseFilename, "rb") as stream:  # noqa: PTH123 (the base class's name for it)
                first = stream.readline(256).decode(errors="replace")
        except OSError:
            return time.time()
        found = re.search(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.\d+(Z))?", first)
        if found is None:
            return time.time()
        moment = time.strptime(f"{found[1]} {found[2]}", "%Y-%m-%d %H:%M:%S")
        return calendar.timegm(moment) if found[3] else time.mktime(moment)

    def _turn_over(self) -> None:
        """FILE becomes FILE.1, FILE.1 becomes FILE.2, and what is beyond ``keep`` goes."""
        base = self.baseFilename
        try:
            for number in range(self._keep, 0, -1):
                source = base if number == 1 else f"{base}.{number - 1}"
                if os.path.exists(source):  # noqa: PTH110
                    os.replace(source, f"{base}.{number}")  # noqa: PTH105
            if not self._keep:
                os.unlink(base)  # noqa: PTH108
        except OSError as error:
            _say(f"ech-workers: local: cannot begin a new log file: {error}")
            self._max_size, self._max_age = 0, 0.0
        # The base class opens the file anew when it sees that it is another one.

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the base class's name)
        error = sys.exception()
        self._lost += 1
        if self._lost == 1:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            _say(
                f"ech-workers: local: cannot write {self.baseFilename}: {why}; log lines are lost until it can be written"
            )


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nowhere left to say it
        print(line, file=sys.stderr, flush=True)  # noqa: T201
