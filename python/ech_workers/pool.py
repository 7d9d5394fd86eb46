"""The sessions of one server: which are wanted, which are live, which are to be replaced because of their age."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from ech_workers.lanes import MOST, Lanes
from ech_workers.overflow import Overflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ech_workers import _native
    from ech_workers.ech import Configuration
    from ech_workers.timing import Timing

__all__ = ["Dial", "Pool", "Session", "SessionStatus"]


class SessionStatus(msgspec.Struct, frozen=True):
    """One session, or in simple mode one connection that showed that the server can be reached."""

    session: int
    address: str
    ech: str
    public_name: str | None
    profile: str
    hello: str
    alpn: str | None
    cipher: str
    group: str
    resumed: bool
    retried: bool
    tcp_ms: float
    tls_ms: float
    websocket_ms: float
    features: tuple[str, ...]
    age: float
    retiring: bool


class Dial:
    """A dial that is under way."""

    def __init__(self, plan: _native.DialPlan, replaces: int | None, used: Configuration | None) -> None:
        """replaces: the session whose successor it makes. used: the ECH configuration in the plan."""
        self.plan = plan
        self.replaces = replaces
        self.used = used


class Session:
    """A session that is up, or ends with its last stream (``retiring``)."""

    def __init__(self, up: _native.SessionUp, at: float, renew_at: float) -> None:
        self.up = up
        self.at = at
        self.renew_at = renew_at
        self.renew_failures = 0
        self.retiring = False

    def status(self, now: float) -> SessionStatus:
        up = self.up
        return SessionStatus(
            session=up.session,
            address=up.address,
            ech=up.ech,
            public_name=up.public_name,
            profile=up.profile,
            hello=up.hello,
            alpn=up.alpn,
            cipher=up.cipher,
            group=up.group,
            resumed=up.resumed,
            retried=up.retried,
            tcp_ms=up.tcp_ms,
            tls_ms=up.tls_ms,
            websocket_ms=up.websocket_ms,
            features=tuple(up.features),
            age=max(0.0, now - self.at),
            retiring=self.retiring,
        )


class Pool:
    """What there is, and what is missing. Times are monotonic seconds."""

    def __init__(self, mode: Literal["yamux", "simple"], sessions: int, timing: Timing) -> None:
        """sessions: how many are wanted; 0: as many as help."""
        self._timing = timing
        self.is_simple = mode == "simple"
        """Each connection has a session of its own."""
        self._fixed = 1 if self.is_simple else sessions
        self.lanes = None if self._fixed else Lanes()
        self.overflow = Overflow(timing)
        self.sessions: dict[int, Session] = {}
        self.dials: dict[int, Dial] = {}
        self.verified = False
        """In simple mode: the last dial showed that the server can be reached."""

    @property
    def wanted(self) -> int:
        """How many sessions there should be."""
        return self._fixed if self.lanes is None else self.lanes.wanted

    @property
    def _room(self) -> int:
        """How many connections more there may be."""
        return 1 << 16 if self.lanes is None else MOST - len(self.sessions) - len(self.dials)

    @property
    def live(self) -> list[Session]:
        """Those that take new streams."""
        return [session for session in self.sessions.values() if not session.retiring]

    @property
    def is_ready(self) -> bool:
        """Whether a stream could be opened now."""
        return self.verified if self.is_simple else bool(self.live)

    @property
    def is_full(self) -> bool:
        return self.is_simple or len(self.live) >= self.wanted

    def missing(self, *, one_at_a_time: bool) -> int:
        """How many dials are to be started to have the wanted sessions, and those beyond them."""
        if self.is_simple:
            return 0 if self.verified or self.dials else 1
        # A dial for the successor of a session that is gone by now counts like any other.
        filling = sum(dial.replaces is None or dial.replaces not in self.sessions for dial in self.dials.values())
        missing = self.wanted + self.overflow.count - len(self.live) - filling
        missing = max(0, min(missing, self._room if self.live else 1))
        if one_at_a_time or not self.live:
            # One finds out whether the server can be reached; the others follow it.
            return 0 if filling else min(1, missing)
        return missing

    def up(self, event: _native.SessionUp, now: float, uniform: float) -> int | None:
        """Takes a new session. Returns the session that it replaces, which is to be retired."""
        dial = self.dials.pop(event.dial, None)
        if self.is_simple:
            # A warm connection: the next one tells the same, newer.
            self.sessions.clear()
        self.sessions[event.session] = Session(event, now, now + self._timing.session_age * (0.9 + 0.2 * uniform))
        self.verified = True
        self.overflow.up(now)
        if self.lanes is not None:
            self.lanes.up(now)
        replaced = self.sessions.get(dial.replaces) if dial is not None and dial.replaces is not None else None
        if replaced is None:
            return None
        replaced.retiring = True
        return replaced.up.session

    def replaced_by(self, dial: Dial) -> Session | None:
        """The session that a dial was to replace, if it still serves."""
        session = self.sessions.get(dial.replaces) if dial.replaces is not None else None
        return None if session is None or session.retiring else session

    def due(self, now: float) -> list[int]:
        """The sessions whose successor is to be dialled now."""
        replaced = {dial.replaces for dial in self.dials.values()}
        due: list[int] = []
        for number, session in self.sessions.items():
            if self._is_renewable(session) and now >= session.renew_at:
                if number not in replaced and len(due) < self._room:
                    due.append(number)
                # Looked at again when the dial has ended, at the latest then.
                session.renew_at = now + self._timing.backoff_limit
        return due

    def renew_all(self, now: float) -> None:
        """Every session is to be replaced."""
        for session in self.sessions.values():
            session.renew_at = now

    def further_failed(self, dial: Dial, now: float) -> bool:
        """A dial failed. True if it was for a session beyond the first: those that there are still serve."""
        if dial.replaces is not None or not self.live:
            return False
        if self.overflow.count > 0 and len(self.live) >= self.wanted:
            self.overflow.failed(now)
            return True
        if self.lanes is None or self.wanted == 1:
            return False
        self.lanes.failed(now)
        return True

    def lost(self, now: float) -> None:
        """A session was lost."""
        self.overflow.lost(now)
        if self.lanes is not None:
            self.lanes.lost(now)

    def bulk_changed(self, event: _native.BulkChanged, now: float) -> None:
        """A session moves more than before, or less."""
        if self.lanes is not None and event.session in self.sessions:
            self.lanes.bulk(event.session, event.streams, now, growing=event.growing)

    def close_lanes(self, now: float, look: Callable[[], _native.Snapshot]) -> list[int]:
        """The sessions that are to be ended because they are idle and fewer are enough. look: at the engine."""
        if self.lanes is None:
            return []
        live = {session.up.session for session in self.live}
        self.lanes.keep(live, now)
        if now < self.lanes.look_at:
            return []
        streams = {session.session: session.streams for session in look().sessions if session.session in live}
        closed = self.lanes.shrink(streams, now, extra=self.overflow.count)
        for number in closed:
            self.sessions[number].retiring = True
        return closed

    def unused(self, now: float, sessions: Iterable[_native.SessionSnapshot]) -> list[int]:
        """The sessions beyond the wanted ones that are to be ended. sessions: the engine's."""
        live = {session.up.session for session in self.live}
        idle = [session.session for session in sessions if session.session in live and session.streams == 0]
        ended = self.overflow.end(now, idle)
        for number in ended:
            self.sessions[number].retiring = True
        return ended

    def deadlines(self) -> list[float]:
        """When sessions are to be replaced, or may be ended."""
        renewals = [session.renew_at for session in self.sessions.values() if self._is_renewable(session)]
        lanes = [] if self.lanes is None else [self.lanes.look_at]
        return renewals + self.overflow.deadlines() + lanes

    def _is_renewable(self, session: Session) -> bool:
        return not session.retiring and not self.is_simple
