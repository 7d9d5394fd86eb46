"""What passes between knowledge and those who use it: questions out, a candidate to dial."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ech_workers.ech import Configuration

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers import doh
    from ech_workers.doh import Answer
    from ech_workers.errors import TunnelError
    from ech_workers.timing import Moment

__all__ = ["Candidate", "Question"]


class Question(NamedTuple):
    """A question for the resolvers."""

    question: doh.Question
    port: int
    """The origin's, for HTTPS records."""
    steps: int
    """Aliases followed so far."""
    answered: Callable[[Answer | TunnelError, Moment], None]
    """Takes the answer, or why there is none."""


class Candidate(msgspec.Struct, frozen=True):
    """Where and how to dial."""

    addresses: tuple[str, ...]
    port: int
    used: Configuration | None
    """The ECH configuration; None without ECH."""

    @property
    def ech(self) -> bytes | None:
        """The ECHConfigList."""
        return self.used.configs if self.used else None
