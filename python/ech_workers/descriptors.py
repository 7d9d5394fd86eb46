"""File descriptors: how many this process may have, and how many connections they do for.

The limit is the process's, so only a command changes it. A program that imports this package decides for itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ech_workers.options.client import CLIENT
from ech_workers.options.schema import options_of

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from ech_workers.config import ClientConfig

__all__ = ["connections", "limit", "of_connection", "raise_limit", "tell"]

_log = logging.getLogger("ech_workers")

RESERVE = 256
"""For everything but connections: standard streams, listeners, sessions and dials, look-ups, the status port, files."""


def limit() -> int | None:
    """How many descriptors this process may have; None if the system does not say, or sets no limit."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raises the soft limit to the hard one, as far as the system lets us."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.debug("the limit of open files stays at %d: %s", soft, error)


def of_connection(config: ClientConfig) -> int:
    """How many a local connection takes: in simple mode it has a session of its own, and a direct one a connection to its
    target."""
    is_simple = any(upstream.mode == "simple" for upstream in config.upstreams)
    return 2 if is_simple or any(rule.to == "direct" for rule in config.rules) else 1


def tell(config: ClientConfig) -> None:
    """Says once in a process how many connections of a Python program there are descriptors for, if there may be more. The limit
    is left as it is."""
    global _told
    allowed = limit()
    if _told or allowed is None:
        return
    # A stream is a socket pair, and in simple mode has a session of its own.
    each = 3 if any(upstream.mode == "simple" for upstream in config.upstreams) else 2
    fitting = _fitting(allowed, each)
    if fitting >= config.max_connections:
        return
    _told = True
    # Nobody has asked for as many as the default allows.
    is_default = config.max_connections == options_of(CLIENT)["max_connections"].default
    _log.log(
        logging.INFO if is_default else logging.WARNING,
        "this process may have %d open files, which do for about %d connections at a time, and max_connections is %d: raise the "
        "limit (ulimit -n, resource.setrlimit), or set max_connections",
        allowed,
        fitting,
        config.max_connections,
    )


_told = False


def _fitting(allowed: int, each: int) -> int:
    return max(1, (allowed - min(RESERVE, allowed // 4)) // each)


def connections(wanted: int, allowed: int | None, *, each: int) -> int:
    """How many connections there may be of the ``wanted`` ones, so that each has the ``each`` descriptors that it needs.

    allowed: descriptors of the process. One line in the log says so if it is fewer.
    """
    if allowed is None:
        return wanted
    fitting = _fitting(allowed, each)
    if fitting >= wanted:
        return wanted
    _log.warning(
        "the system allows this process %d open files: there may be %d connections at a time instead of %d; raise its hard "
        "limit (LimitNOFILE= in a systemd unit), or set --max-connections",
        allowed,
        fitting,
        wanted,
    )
    return fitting
