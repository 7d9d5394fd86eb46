"""The native engine: what it is told of a configuration, and its verbs as far as each part uses them, so that a test can stand
in for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ech_workers import _native
from ech_workers.arguments import ArgumentError
from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ech_workers.config import ClientConfig
    from ech_workers.routing import Tiers

    ServerEvent = (
        _native.SessionUp
        | _native.SessionLost
        | _native.SessionsFull
        | _native.DialFailed
        | _native.EchLearned
        | _native.H2Chosen
        | _native.BulkChanged
        | _native.Echoed
        | _native.Unreached
    )
    """What the engine tells of one server."""

__all__ = [
    "EchoEngine",
    "EngineLike",
    "FetchEngine",
    "NamesEngine",
    "ProbeEngine",
    "SelectionEngine",
    "UpstreamEngine",
    "engine_configuration",
]


def engine_configuration(config: ClientConfig, **more: Any) -> _native.EngineConfiguration:
    """What the engine is told of a configuration. more: what is not in it as the engine takes it (rules, limits). Raises
    ConfigError."""
    try:
        return _native.EngineConfiguration(ca_pem=() if config.ca_pem is None else (config.ca_pem,), **more)
    except ArgumentError as error:
        option = "--ca-file" if error.argument == "ca_pem" else f"--{error.argument.replace('_', '-')}"
        raise ConfigError(error.problem, option=option) from None


class EchoEngine(Protocol):
    """For finding out how much gets through."""

    def echo(self, session: int, upstream: int) -> int: ...
    def echo_alone(self, plan: _native.DialPlan) -> int: ...
    def snapshot(self) -> _native.Snapshot: ...


class UpstreamEngine(EchoEngine, Protocol):
    """For one server."""

    def set_plan(self, plan: _native.DialPlan | None, upstream: int = 0) -> None: ...
    def dial(self, plan: _native.DialPlan) -> int: ...
    def retire(self, session: int) -> None: ...


class ProbeEngine(Protocol):
    """For finding out which sessions answer."""

    def probe(self, session: int | None = None) -> None: ...
    def snapshot(self) -> _native.Snapshot: ...


class SelectionEngine(ProbeEngine, Protocol):
    """For the choice among servers."""

    def route(self, tiers: Tiers) -> None: ...


class FetchEngine(Protocol):
    """For look-ups."""

    def fetch(self, plan: _native.FetchPlan) -> int: ...


class NamesEngine(Protocol):
    """For the names of targets that are connected to directly."""

    def forget_names(self) -> None: ...
    def resolved(self, name: str, addresses: Sequence[str] | None, ttl: float) -> None: ...


class EngineLike(UpstreamEngine, SelectionEngine, FetchEngine, NamesEngine, Protocol):
    """All that the supervisor and its parts use."""

    def unavailable(self, reason: str | None, code: str = "") -> None: ...
    def next_event(self, timeout: float | None) -> _native.Event | None: ...
    def wake(self) -> None: ...
