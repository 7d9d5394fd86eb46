"""Other libraries through a tunnel, one module each. Every connection that one of them makes, also when it connects again or
follows a redirect, goes through the tunnel or fails; what the environment says of proxies is not heeded.

A module needs its library, which the extra of the same name installs (``pip install ech-workers[httpx]``); ``http_client``
and ``urllib_request`` need the standard library alone.
"""

from __future__ import annotations

__all__ = ["missing"]


def missing(error: ImportError, extra: str) -> ImportError:
    """What to raise when an integration's library is not there."""
    return ImportError(f"{error}: pip install ech-workers[{extra}]", name=error.name)
