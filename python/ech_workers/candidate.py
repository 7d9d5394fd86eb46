"""What passes between knowledge and those who use it: questions out, a candidate to dial, and the plan made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ech_workers import _native
from ech_workers.addresses import interleaved
from ech_workers.doh import AddressAnswer
from ech_workers.ech import Configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ech_workers import doh
    from ech_workers.config import UpstreamConfig
    from ech_workers.doh import Answer
    from ech_workers.errors import TunnelError
    from ech_workers.timing import Moment

__all__ = ["Candidate", "Question", "addresses_of", "dial_plan"]


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


def dial_plan(
    server: UpstreamConfig, candidate: Candidate, *, h2_known: bool, number: int = 0, profile: str | None = None
) -> _native.DialPlan:
    """The plan to dial by. number: the upstream's. profile: instead of the server's own. Raises ValueError naming the
    field."""
    return _native.DialPlan(
        server_name=server.server.host,
        port=candidate.port,
        # RFC 9460 section 9: the record's port changes where to connect to, not the origin.
        authority_port=server.server.port,
        path=server.server.path,
        token=server.token,
        addresses=candidate.addresses,
        ech=candidate.ech,
        profile=profile or server.profile,
        alpn=server.alpn,
        h2_known=h2_known,
        mode=server.mode,
        upstream=number,
    )


def addresses_of(found: Mapping[doh.Type, doh.AddressAnswer | TunnelError]) -> tuple[str, ...]:
    """Both families in turn, IPv6 first."""
    ipv6, ipv4 = (
        answer.addresses if isinstance(answer := found.get(family), AddressAnswer) else () for family in ("AAAA", "A")
    )
    return interleaved(ipv6, ipv4)
