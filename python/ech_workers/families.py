"""The addresses of a name, of both families."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ech_workers import doh
from ech_workers.candidate import Question
from ech_workers.errors import TunnelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ech_workers.doh import Answer
    from ech_workers.timing import Moment

__all__ = ["FAMILIES", "Found", "address_questions"]

FAMILIES: tuple[doh.Type, ...] = ("AAAA", "A")

Found = dict[doh.Type, doh.AddressAnswer | TunnelError]
"""The answers for each family that have come."""


def address_questions(name: str, found: Found, done: Callable[[Moment], object]) -> Iterator[Question]:
    """The questions for the addresses of a name. ``found`` takes each answer; ``done`` is called after both."""
    for family in FAMILIES:

        def answered(answer: Answer | TunnelError, now: Moment, family: doh.Type = family) -> None:
            if isinstance(answer, doh.AddressAnswer | TunnelError):
                found[family] = answer
            if len(found) == len(FAMILIES):
                done(now)

        yield Question(doh.Question(name, family), 443, 0, answered)
