"""What a running command does for those who ask at its control socket."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ech_workers import control
from ech_workers._logging import about
from ech_workers.cli import logs
from ech_workers.errors import ConfigError, ListenError, TunnelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ech_workers.cli.stopping import Stopping
    from ech_workers.reload import Difference

__all__ = ["Reloader", "controlled"]

log = logging.getLogger("ech_workers")

# Seconds between two signs of life to whoever follows the log: a reader that has gone is noticed by them.
_SIGN_OF_LIFE = 5.0


class Reloader:
    """Takes a new configuration, one at a time. A wrong one changes nothing."""

    def __init__(self, take: Callable[[], Difference]) -> None:
        """take: reads the configuration, applies it, and says what changed. Raises TunnelError before it has changed
        anything."""
        self._take = take
        self._lock = threading.Lock()

    def __call__(self) -> Difference | None:
        """For a signal: what happened is in the log. None: it was refused."""
        try:
            return self.reload()
        except TunnelError:
            return None

    def reload(self) -> Difference:
        """Raises TunnelError: nothing has changed then."""
        with self._lock:
            try:
                found = self._take()
            except TunnelError as error:
                log.error("not reloaded, everything stays as it was: %s", error.line(), extra=about(error))
                raise
            log.log(logging.WARNING if found.restart else logging.INFO, "reloaded: %s", found.line())
            return found


@contextlib.contextmanager
def controlled(
    role: str,
    path: str | None,
    status: Callable[[], Any],
    stopping: Stopping,
    reloader: Reloader | None,
    more: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Any]]] | None = None,
) -> Iterator[control.ControlSocket | None]:
    """The control socket of a running command, while entered.

    path: None is the default place, where a socket that cannot be had is no reason not to run; empty: none. Raises
    ListenError for a path that was given."""
    if path == "":
        yield None
        return

    def reload(request: Mapping[str, Any]) -> Iterator[Any]:
        if reloader is None:
            raise ConfigError("there is nothing to reload")
        yield reloader.reload()

    def stop(request: Mapping[str, Any]) -> Iterator[Any]:
        # Answered first: the end closes this connection.
        yield {"pid": os.getpid()}
        log.info("asked to stop by the control socket")
        stopping.ask()

    verbs = {
        "status": lambda request: iter([status()]),
        "reload": reload,
        "stop": stop,
        "logs": _logs,
        **(more or {}),
    }
    try:
        opened = control.ControlSocket(Path(path) if path else control.default_path(role), verbs)
    except ListenError as error:
        if path:
            raise
        log.warning("there is no control socket: %s", error.message)
        yield None
        return
    try:
        yield opened
    finally:
        opened.close()


def _logs(request: Mapping[str, Any]) -> Iterator[Any]:
    """The last lines, then with ``follow`` each new one; None is a sign of life."""
    recent = logs.recent()
    if recent is None:
        return
    count = request.get("lines")
    with recent.followed(count if isinstance(count, int) else 20) as (last, new):
        yield from last
        while request.get("follow"):
            try:
                yield new.get(timeout=_SIGN_OF_LIFE)
            except queue.Empty:
                yield None
