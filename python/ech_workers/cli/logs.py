"""Log lines: Python's logging, set up for a program that runs in a terminal or under a service manager."""

from __future__ import annotations

import logging
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
            handler = logging.FileHandler(file, encoding="utf-8")
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
