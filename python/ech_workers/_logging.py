"""Log lines of the native module, as those of this package's loggers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ech_workers._native import LogLine

__all__ = ["forward"]


def forward(line: LogLine) -> None:
    """Logs a native line: the crate ech_workers_tunnel's module server logs as ``ech_workers.tunnel.server``."""
    name = line.target.replace("::", ".").replace("ech_workers_", "ech_workers.", 1)
    logging.getLogger(name).log(line.level, "%s", line.message)
