"""All that is known of a running tunnel's way to its servers, at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from ech_workers.errors import Cause
from ech_workers.knowledge import EchStatus
from ech_workers.pacing import Breaker
from ech_workers.pool import SessionStatus
from ech_workers.probes import ProbeCounts, ProbeStatus
from ech_workers.resolvers import ResolverStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EchStatus",
    "Phase",
    "ProbeCounts",
    "ProbeStatus",
    "ResolverStatus",
    "Role",
    "SessionStatus",
    "SupervisorStatus",
    "UpstreamStatus",
    "overview",
]

Role = Literal["in use", "standby", "probation", "demoted", "silent", "down"]
Phase = Literal["resolving", "connecting", "up", "degraded", "waiting", "stopped"]


class UpstreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server, at one moment. Times are seconds."""

    upstream: int
    name: str
    server: str
    mode: str
    phase: Phase
    cause: Cause | None
    """Why there is no session, or fewer than wanted."""
    cause_age: float | None
    sessions: tuple[SessionStatus, ...]
    wanted: int
    dialing: int
    failures: int
    """Dials in a row that failed."""
    breaker: Breaker
    next_attempt_in: float | None
    ech: EchStatus | None
    """None with --no-ech, or before anything is known."""
    addresses: tuple[str, ...]
    role: Role = "in use"
    """in use: new streams go there; standby: they go there when no better server works; probation: it was lost, works
    again, and has to go on working before it is preferred; demoted: its connections stop after a few kilobytes, so it is used
    last; silent: its sessions do not answer; down: it has none."""
    stops_after: int | None = None
    """Bytes after which its connections stop, if they do."""
    probe: ProbeStatus | None = None
    """What came of the last probe."""
    probes: ProbeCounts = ProbeCounts()
    can_be_probed: bool | None = None
    """False: the server does not announce that it sends back what a probe sends, so that its traffic alone tells whether its
    connections stop. None before the first session."""
    unreached: int = 0
    """Connections that went on to another server because this one could not reach their target."""
    unreached_why: str | None = None
    """Why the last of them did."""


class SupervisorStatus(msgspec.Struct, frozen=True):
    """All the supervisor knows, at one moment. Times are seconds.

    What is said of one server alone (up to ``addresses``) is said of the one that is in the best state.
    """

    server: str
    mode: str
    phase: Phase
    cause: Cause | None
    """Why there is no session, or fewer than wanted."""
    cause_age: float | None
    sessions: tuple[SessionStatus, ...]
    """Of every server."""
    wanted: int
    dialing: int
    failures: int
    """Dials in a row that failed."""
    breaker: Breaker
    next_attempt_in: float | None
    ech: EchStatus | None
    """None with --no-ech, or before anything is known."""
    addresses: tuple[str, ...]
    resolvers: tuple[ResolverStatus, ...]
    upstreams: tuple[UpstreamStatus, ...] = ()
    """Every server, in the configured order."""


def overview(
    upstreams: Sequence[UpstreamStatus], resolvers: tuple[ResolverStatus, ...], *, stopped: bool
) -> SupervisorStatus:
    """Puts the statuses of the servers together; among equals the first one counts."""
    best = min(upstreams, key=lambda upstream: _PHASES.index(upstream.phase))
    return SupervisorStatus(
        server=best.server,
        mode=best.mode,
        phase="stopped" if stopped else best.phase,
        cause=best.cause,
        cause_age=best.cause_age,
        sessions=tuple(session for upstream in upstreams for session in upstream.sessions),
        wanted=best.wanted,
        dialing=sum(upstream.dialing for upstream in upstreams),
        failures=best.failures,
        breaker=best.breaker,
        next_attempt_in=None if stopped else best.next_attempt_in,
        ech=best.ech,
        addresses=best.addresses,
        resolvers=resolvers,
        upstreams=tuple(upstreams),
    )


# From the best to the worst.
_PHASES: tuple[Phase, ...] = ("up", "degraded", "connecting", "resolving", "waiting", "stopped")
