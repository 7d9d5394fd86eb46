"""What the feed says once a second: the facts of the moment as JSON, and the same in words, for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ech_workers import _native
from ech_workers.status.carried import Carried
from ech_workers.status.facts import Facts
from ech_workers.status.lines import CARRIED_COLUMNS, HANDSHAKE_COLUMNS, SESSION_COLUMNS, Row, duration, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers.status.facts import Session

__all__ = ["INTERVAL", "VERSION", "Frame", "frame"]

VERSION = 1
"""Of the schema: raised when a field goes or changes its meaning, not when one is added."""

INTERVAL = 1.0
"""Seconds between two frames."""


class Words(msgspec.Struct, frozen=True):
    """The facts as people read them."""

    rows: list[Row]
    headings: list[str]
    sessions: list[list[str]]
    """A row of cells for each session."""
    carried_headings: list[str]
    carried: list[list[str]]
    """A row of cells for each open connection, the youngest first."""


class Frame(msgspec.Struct, frozen=True):
    """One message of the feed."""

    version: int
    release: str
    """The version of the program."""
    interval: float
    facts: Facts
    words: Words
    carried: list[Carried]
    """The open connections; of many the youngest."""


_COLUMNS: dict[str, Callable[[Session], str]] = {**SESSION_COLUMNS, **HANDSHAKE_COLUMNS}


def frame(facts: Facts, carried: list[Carried]) -> bytes:
    """The JSON of this moment."""
    words = Words(
        [*rows(facts), Row("uptime", duration(facts.uptime)), Row("version", _native.__version__)],
        list(_COLUMNS),
        [[cell(session) for cell in _COLUMNS.values()] for session in facts.sessions],
        list(CARRIED_COLUMNS),
        [[cell(one) for cell in CARRIED_COLUMNS.values()] for one in reversed(carried)],
    )
    return msgspec.json.encode(Frame(VERSION, _native.__version__, INTERVAL, facts, words, carried))
