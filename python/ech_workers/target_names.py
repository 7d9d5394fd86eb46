"""Names of targets that are connected to directly: looked up by the same resolvers as the server's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ech_workers import doh
from ech_workers.addresses import is_address
from ech_workers.candidate import addresses_of
from ech_workers.families import FAMILIES, Found, address_questions

if TYPE_CHECKING:
    from ech_workers.candidate import Question
    from ech_workers.engine import NamesEngine
    from ech_workers.nat64 import Translation

__all__ = ["TargetNames"]


class TargetNames:
    """The names that the engine wants; it keeps the answers."""

    def __init__(self, engine: NamesEngine, translation: Translation) -> None:
        """translation: how addresses are reached from here."""
        self._engine = engine
        self._translation = translation
        self._asked: set[str] = set()
        self._questions: list[Question] = []

    def forget(self) -> None:
        """Addresses are reached in another way now: what the engine knows does not hold any more."""
        self._engine.forget_names()

    def wanted(self, name: str) -> None:
        """The engine wants this name's addresses; or of an IPv4 address to which there is no route, the addresses by which it
        can be reached."""
        if is_address(name):
            self._engine.resolved(name, self._translation.reach((name,)), 0.0)
            return
        if name in self._asked:
            return
        self._asked.add(name)
        found: Found = {}
        self._questions += address_questions(name, found, lambda now: self._found(name, found))

    def questions(self) -> list[Question]:
        """What is to be asked of the resolvers now."""
        questions, self._questions = self._questions, []
        return questions

    def _found(self, name: str, found: Found) -> None:
        self._asked.discard(name)
        answers = [answer for answer in found.values() if isinstance(answer, doh.AddressAnswer)]
        addresses = addresses_of(found)
        if addresses:
            answers = [answer for answer in answers if answer.addresses]
        elif len(answers) < len(FAMILIES):
            self._engine.resolved(name, None, 0.0)
            return
        self._engine.resolved(name, self._translation.reach(addresses), float(min(answer.ttl for answer in answers)))
