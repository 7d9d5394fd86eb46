"""The questions of all upstreams, put to the resolvers they share, by the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ech_workers import _native
from ech_workers.resolvers import Resolvers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ech_workers.candidate import Question
    from ech_workers.clocks import Clocks
    from ech_workers.config import ClientConfig, Resolver
    from ech_workers.engine import FetchEngine
    from ech_workers.nat64 import Translation
    from ech_workers.steps import Step
    from ech_workers.timing import Timing

__all__ = ["LookUps"]


class LookUps(Resolvers):
    """The resolvers of a configuration, asked through an engine."""

    def __init__(
        self,
        config: ClientConfig,
        engine: FetchEngine,
        clocks: Clocks,
        timing: Timing,
        uniform: Callable[[], float],
        trace: Callable[[Step], object],
        translation: Translation,
    ) -> None:
        """translation: how addresses are reached from here."""
        self._engine = engine
        self._clocks = clocks
        self._profile = config.profile
        self._translation = translation
        super().__init__(
            config.resolvers,
            self._fetch,
            clock=lambda: clocks.now().clock,
            random=uniform,
            head_start=timing.head_start,
            timeout=timing.exchange,
            trace=trace,
        )

    def ask_all(self, questions: Iterable[Question]) -> None:
        """Starts a race for each question; its answer goes back with the time of its arrival."""
        for asked in questions:
            self.ask(
                asked.question,
                lambda answer, asked=asked: asked.answered(answer, self._clocks.now()),  # type: ignore[misc]
                port=asked.port,
                steps=asked.steps,
            )

    def _fetch(
        self, resolver: Resolver, *, path: str, method: Literal["GET", "POST"], body: bytes, timeout: float
    ) -> int:
        plan = _native.FetchPlan(
            server_name=resolver.host,
            port=resolver.port,
            addresses=self._translation.reach(resolver.addresses),
            path=path,
            method=method,
            body=body,
            profile=self._profile,
            timeout=timeout,
        )
        return self._engine.fetch(plan)
