"""The numbers by which the engine knows servers, over all reloads of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ech_workers.config import UpstreamConfig

__all__ = ["Numbering"]


class Numbering:
    """Which number is which server's. None is given to another server later on: sessions, plans and streams of a server
    that is gone keep its number to their end."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._next = 0

    def of(self, upstreams: Iterable[UpstreamConfig]) -> tuple[int, ...]:
        """The numbers of these servers, in their order. Those that are the same as before keep theirs: by their name, and
        where and how they are reached."""
        present: dict[tuple[str, str, str], int] = {}
        for upstream in upstreams:
            who = (upstream.name, str(upstream.server), upstream.mode)
            number = self._numbers.get(who)
            if number is None:
                number = self._next
                self._next += 1
            present[who] = number
        self._numbers = present
        return tuple(present.values())

    @staticmethod
    def gone(before: Sequence[int], now: Sequence[int]) -> tuple[int, ...]:
        """The servers that are not there any more."""
        return tuple(number for number in before if number not in now)
