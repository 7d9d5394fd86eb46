"""Log lines: Python's logging, set up for a program that runs in a terminal or under a service manager."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import sys
from typing import TYPE_CHECKING

from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["configure"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, file: Path | None, *, verbose: bool) -> None:
    """Sends the package's log lines to ``file`` or to standard error. Raises ConfigError."""
    if file is None:
        handler: logging.Handler = _StandardError()
    else:
        try:
            handler = LogFile(file)
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror}", option="--log-file") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("ech_workers")
    for old in logger.handlers:
        old.close()
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else _LEVELS[level])
    logger.propagate = False


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
    """Appends to a file, goes on in a new one when that was renamed, and outlives a full disk.

    What cannot be written is counted, said once on standard error, and noted in the file when it takes lines again.
    """

    def __init__(self, file: Path) -> None:
        self._lost = 0
        super().__init__(file, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        # Without buffers: what the disk did not take must not come back to fail with the next line.
        raw = open(self.baseFilename, "ab", buffering=0)  # noqa: PTH123, SIM115 (closed by the base class)
        return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)

    def emit(self, record: logging.LogRecord) -> None:
        lost = self._lost
        super().emit(record)
        if lost and self._lost == lost:
            self._lost = 0
            lines = f"{lost} log lines were lost" if lost > 1 else "a log line was lost"
            self.emit(logging.makeLogRecord({**vars(record), "msg": f"{lines} before this one", "args": None}))

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
