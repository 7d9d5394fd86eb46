"""The durations that the supervisor and its parts go by, and a moment on both clocks."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

__all__ = ["Moment", "Timing"]


class Moment(NamedTuple):
    """The present time, handed to parts that have no clock of their own."""

    clock: float
    """Monotonic seconds."""
    wall: float
    """Seconds since the epoch."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds."""

    backoff_first: float = 0.5
    backoff_limit: float = 30.0
    breaker_failures: int = 5
    """This many failures in a row open the breaker."""
    breaker_first: float = 15.0
    """How long it stays open before a single dial probes the server; doubled each time."""
    breaker_limit: float = 60.0
    retry_after_limit: float = 3600.0
    """A server that asks to wait longer is tried again after this."""
    session_age: float = 3600.0
    """A session is replaced at this age (give or take a tenth), before something on the way ends it."""
    extra_idle: float = 60.0
    """A session that was dialled because the others were full ends when it has been without streams, and the others have
    not been full, for this long."""
    session_young: float = 5.0
    """After a session that was lost sooner than this, the next dial may have to wait."""
    young_limit: float = 15.0
    """It waits no longer than this: the server can be reached, and the next session may live."""
    refresh_share: float = 0.8
    """The part of a TTL after which a new record is looked for."""
    refresh_floor: float = 10.0
    """Records are not looked for more often than this, whatever their TTL."""
    fresh: float = 5.0
    """What was looked up so recently is not looked up again because a dial failed."""
    clock_jump: float = 5.0
    """A wall clock that moves by this much against the monotonic one: the machine slept."""
    tick: float = 10.0
    """How often the clocks are compared."""
    head_start: float = 0.2
    """How long one resolver has before the next one is asked as well."""
    probe_first: bool = False
    """Every server shows with its first session that 64 KiB get through, where it announces that it can."""
    exchange: float = 5.0
    """The limit of one exchange with a resolver."""
