"""File descriptors: how many this process may have, and how many connections they do for.

The limit is the process's, so only a command changes it. A program that imports this package decides for itself.
"""

from __future__ import annotations

import logging

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

__all__ = ["connections", "limit", "raise_limit"]

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


def connections(wanted: int, allowed: int | None, *, each: int) -> int:
    """How many connections there may be of the ``wanted`` ones, so that each has the ``each`` descriptors that it needs.

    allowed: descriptors of the process. One line in the log says so if it is fewer.
    """
    if allowed is None:
        return wanted
    fitting = max(1, (allowed - min(RESERVE, allowed // 4)) // each)
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
