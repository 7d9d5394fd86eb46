"""What every unit test starts from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from harness.world import made_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.world import World


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """The command line sets the package's logger up for a program; the next test finds it as it was."""
    logger = logging.getLogger("ech_workers")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Resolvers, servers and clocks for a supervisor, in the test's hands."""
    with made_world(monkeypatch) as made:
        yield made
