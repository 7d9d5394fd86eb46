"""When the next dial to one server may start: backoff, the breaker, sessions that die young, servers that say goodbye.

A small state machine without a clock: each method takes the present time (monotonic seconds).

    closed ── 5 failures in a row, or a lasting one ──▶ open ── the pause is over: one dial ──▶ half-open
       ▲                                                 ▲                                         │
       └────────────── a session is up ──────────────────┴─────────────── it failed ───────────────┘
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers.timing import Timing

__all__ = ["Breaker", "Pacing", "Remedy"]

Breaker = Literal["closed", "open", "half-open"]

Remedy = Literal["none", "at-once", "look-up"]
"""What can be done about a failed dial: nothing but wait, dial at once by a better plan, dial when a look-up is done."""

# These do not pass by themselves within seconds: asking often only annoys the server.
LASTING = frozenset(
    {
        "token-rejected",
        "certificate-unknown-issuer",
        "certificate-expired",
        "certificate-not-yet-valid",
        "certificate-name",
        "certificate-invalid",
        "tls-version",
    }
)

# This many failures in a row may be met with a better plan at once; from then on a pause follows every failure.
HEALING_DIALS = 2

# This many young sessions in a row may end with a go-away before the next dial waits: when one server takes over from
# another, both are there for a moment.
FAREWELLS = 2

# The clients of a server that stops are told at the same moment. Each dials at a moment of its own within so many seconds,
# or when somebody waits for a session.
FAREWELL_SPREAD = 45.0

# How often it is looked whether somebody waits, meanwhile.
LOOK = 0.2


class Pacing:
    """The pace of the dials to one server."""

    def __init__(self, timing: Timing, uniform: Callable[[], float]) -> None:
        """uniform: random over [0, 1), for the jitter."""
        self._timing = timing
        self._uniform = uniform
        self.breaker: Breaker = "closed"
        self.failures = 0
        """Dials in a row that failed."""
        self.dial_at = 0.0
        """No dial starts before this time."""
        self.is_healing = False
        """The next dial waits for a look-up."""
        self.flaps = 0
        """Sessions in a row that died young."""
        self._flapped_at = -math.inf
        self._farewells = 0
        self._looked_at = -math.inf
        self.is_spread = False
        """The next dial is put off for the server's sake alone: it may start as soon as somebody waits for it."""

    def may_dial(self, now: float) -> bool:
        return not self.is_healing and now >= self.dial_at

    @property
    def may_heal(self) -> bool:
        """Whether the next failure may be met with another look-up or plan at once."""
        return self.failures < HEALING_DIALS

    @property
    def is_flapping(self) -> bool:
        """So many sessions died young that the state is "not up", although handshakes succeed."""
        return self.flaps > HEALING_DIALS

    def begin(self) -> None:
        """A dial starts."""
        if self.breaker == "open":
            self.breaker = "half-open"

    def up(self, now: float) -> None:
        """A session is up."""
        self.failures = 0
        self.breaker = "closed"
        self.is_healing = False
        self.dial_at = now
        self.is_spread = False

    def failed(self, now: float, code: str, remedy: Remedy = "none", *, retry_after: float = 0.0) -> None:
        """A dial failed. retry_after: the least pause that the server asked for."""
        self.failures += 1
        self.is_spread = False
        if remedy == "at-once":
            self.dial_at = now
        elif remedy == "look-up":
            self.is_healing = True
        else:
            self.dial_at = now + max(retry_after, self._jitter(self._pause(code)))

    def _pause(self, code: str) -> float:
        timing = self._timing
        lasting = code in LASTING
        if not (lasting or self.breaker == "half-open" or self.failures >= timing.breaker_failures):
            return self.backoff(self.failures - 1)
        self.breaker = "open"
        times = max(0, self.failures - (1 if lasting else timing.breaker_failures))
        return min(timing.breaker_limit, timing.breaker_first * 2.0 ** min(times, 16))

    def healed(self, now: float) -> None:
        """The look-up that the next dial waits for is done."""
        if self.is_healing:
            self.is_healing = False
            self.dial_at = now

    def lost(self, now: float, age: float) -> bool:
        """A session was lost at ``age`` seconds. True if it was a young one.

        Then the handshakes succeed and what follows does not: a pause, or it would go round without end; but not the
        breaker, which is for servers that cannot be reached.
        """
        self.hurry(now)
        if age >= self._timing.session_young:
            self.flaps = 0
            return False
        # A session that was there already at the loss before was lost to the same thing.
        if now - age >= self._flapped_at:
            self.flaps += 1
            self._flapped_at = now
            waits = max(0, self.flaps - HEALING_DIALS)
            pause = min(self._timing.young_limit, self.backoff(waits)) if waits else 0.0
            self.dial_at = now + self._jitter(pause)
        return True

    def farewell(self, now: float, age: float) -> bool:
        """The server ended a session with a go-away: no failure. True for the first in a row.

        The next dial starts when somebody waits for a session, and within FAREWELL_SPREAD seconds. A server that goes on
        stopping and still takes sessions is not asked again and again without a pause.
        """
        if age >= self._timing.session_young:
            self._farewells = 0
        self._farewells += 1
        if self._farewells > FAREWELLS:
            self.dial_at = now + self.backoff(self._farewells - FAREWELLS - 1)
        else:
            self.dial_at = now + FAREWELL_SPREAD * self._uniform()
            self.is_spread = True
            self._looked_at = now
        return self._farewells == 1

    def look(self, now: float, *, is_waited_for: bool) -> None:
        """A dial that is put off for the server's sake starts when somebody waits for a session."""
        self._looked_at = now
        if is_waited_for:
            self.hurry(now)

    def hurry(self, now: float) -> None:
        """A dial is not put off for the server's sake any longer."""
        if self.is_spread:
            self.dial_at = now
            self.is_spread = False

    @property
    def look_at(self) -> float:
        """When it is time to see whether a dial may start."""
        return min(self.dial_at, self._looked_at + LOOK) if self.is_spread else self.dial_at

    def jumped(self, now: float) -> None:
        """The machine slept, or the network is another one: a long pause is over."""
        self.dial_at = now
        self.is_spread = False
        if self.breaker == "open":
            self.breaker = "half-open"

    def backoff(self, failures: int) -> float:
        """The pause after so many failures, without jitter."""
        return min(self._timing.backoff_limit, self._timing.backoff_first * 2.0 ** min(failures, 16))

    def _jitter(self, pause: float) -> float:
        # Wide, so that the clients of a server that was lost do not come back in step.
        return pause * (0.5 + self._uniform())
