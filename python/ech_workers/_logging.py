"""What log lines carry beside their text, and the log lines of the native module."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ech_workers._native import LogLine

__all__ = ["ABOUT", "ABOUT_CONFIG", "Failed", "about", "forward"]

ABOUT = ("layer", "code", "server", "session")
"""What a line may be about: attributes of a log record, where they apply."""


class Failed(Protocol):
    """A failure: a ``TunnelError``, its ``Cause``, or a native one."""

    @property
    def layer(self) -> str: ...
    @property
    def code(self) -> str: ...


class Named(Protocol):
    """A server."""

    @property
    def name(self) -> str: ...


def about(failed: Failed | None = None, *, server: str | None = None, session: int | None = None) -> dict[str, object]:
    """The ``extra`` of a log line that is about these. server: its name in the configuration. session: its number."""
    layer, code = (None, None) if failed is None else (failed.layer, failed.code)
    return _given(layer, code, server, session)


def forward(line: LogLine, servers: Mapping[int, Named] | None = None) -> None:
    """Logs a native line: the crate ech_workers_tunnel's module server logs as ``ech_workers.tunnel.server``. servers: on a client,
    by their numbers."""
    name = line.target.replace("::", ".").replace("ech_workers_", "ech_workers.", 1)
    server = None if servers is None or line.upstream is None else servers.get(line.upstream)
    extra = _given(line.layer, line.code, None if server is None else server.name, line.session)
    logging.getLogger(name).log(line.level, "%s", line.message, extra=extra)


def _given(layer: str | None, code: str | None, server: str | None, session: int | None) -> dict[str, object]:
    values = zip(ABOUT, (layer, code, server, session), strict=True)
    return {name: value for name, value in values if value is not None}


ABOUT_CONFIG = about(ConfigError("a file that an option names"))
"""For lines about a file of the configuration that cannot be used."""
