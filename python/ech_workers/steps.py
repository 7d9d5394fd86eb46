"""The steps on the way to a server, told to whoever follows them (``check`` does)."""

from __future__ import annotations

import msgspec

from ech_workers import _native, doh
from ech_workers.candidate import Candidate
from ech_workers.config import Resolver
from ech_workers.doh import Answer
from ech_workers.ech import Configuration
from ech_workers.errors import Cause, TunnelError

__all__ = ["Asked", "Dialed", "Dialing", "Exchanged", "Failed", "Learned", "Passed", "Settled", "Step", "ignore"]


class Asked(msgspec.Struct, frozen=True):
    """A step for whoever follows the look-ups: an exchange has started."""

    resolver: Resolver
    question: doh.Question


class Exchanged(msgspec.Struct, frozen=True):
    """A step for whoever follows the look-ups: an exchange has ended."""

    resolver: Resolver
    question: doh.Question
    outcome: Answer | TunnelError
    ms: float | None = None
    http_version: str | None = None
    age: int = 0
    """Seconds that the answer has spent in caches."""


class Dialing(msgspec.Struct, frozen=True):
    """A step for whoever follows what an upstream does: a dial has started."""

    dial: int
    candidate: Candidate


class Learned(msgspec.Struct, frozen=True):
    """A step: the server rejected a configuration and handed over its own."""

    rejected: Configuration


class Dialed(msgspec.Struct, frozen=True):
    """A step: a dial has ended well."""

    dial: int
    up: _native.SessionUp


class Failed(msgspec.Struct, frozen=True):
    """A step: a dial has failed."""

    dial: int
    cause: Cause
    ech_rejected: bool
    """The server rejected ECH in the handshake that failed."""
    is_last: bool
    """Nothing better is known; False when another dial follows at once, or after a look-up."""


class Passed(msgspec.Struct, frozen=True):
    """A step: an endpoint was passed over, since its name has no address."""

    used: Configuration | None
    cause: Cause


class Settled(msgspec.Struct, frozen=True):
    """A step: the attempt has failed for good."""

    cause: Cause


Step = Asked | Exchanged | Dialing | Learned | Dialed | Failed | Passed | Settled


def ignore(step: Step) -> None:
    """For when nobody follows."""
