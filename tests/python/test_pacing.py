"""The pace of dials, by tables: what happened so far, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ech_workers.pacing import Pacing
from ech_workers.timing import Timing

if TYPE_CHECKING:
    from collections.abc import Sequence

# A step: the method, the seconds since the step before, and further arguments.
Step = tuple[str, float, tuple[Any, ...]]


def failed(after: float = 0.0, code: str = "tcp-refused", *more: Any) -> Step:
    return ("failed", after, (code, *more))


def up(after: float = 0.0) -> Step:
    return ("up", after, ())


def lost(after: float, age: float) -> Step:
    return ("lost", after, (age,))


def farewell(after: float, age: float) -> Step:
    return ("farewell", after, (age,))


def waited_for(after: float, is_waited_for: bool) -> Step:
    return ("look", after, (is_waited_for,))


def after(steps: Sequence[Step]) -> tuple[Pacing, float]:
    """The machine after these steps, and the time then."""
    pacing = Pacing(Timing(), lambda: 0.5)
    now = 100.0
    for name, seconds, arguments in steps:
        now += seconds
        if name == "begin":
            pacing.begin()
        elif name == "look":
            pacing.look(now, is_waited_for=arguments[0])
        else:
            getattr(pacing, name)(now, *arguments)
    return pacing, now


BEGIN: Step = ("begin", 0.0, ())
OPEN = [failed()] * 5


@pytest.mark.parametrize(
    ("steps", "pause", "breaker"),
    [
        ([], 0, "closed"),
        ([failed()], 0.5, "closed"),
        ([failed()] * 2, 1, "closed"),
        ([failed()] * 4, 4, "closed"),
        (OPEN, 15, "open"),
        ([*OPEN, BEGIN], 15, "half-open"),
        ([*OPEN, BEGIN, failed()], 30, "open"),
        ([*OPEN, BEGIN, failed(), BEGIN, failed()], 60, "open"),
        ([*OPEN, *[BEGIN, failed()] * 20], 60, "open"),
        ([*OPEN, BEGIN, up()], 0, "closed"),
        ([*OPEN, up(), failed()], 0.5, "closed"),
        # What does not pass by itself is tried rarely from the first time on.
        ([failed(0.0, "token-rejected")], 15, "open"),
        ([failed(0.0, "token-rejected"), BEGIN, failed(0.0, "token-rejected")], 30, "open"),
        ([failed(), failed(0.0, "certificate-expired")], 30, "open"),
        # A better plan, or a look-up that may bring one.
        ([failed(0.0, "ech-rejected", "at-once")], 0, "closed"),
        ([failed(0.0, "ech-rejected", "at-once")] * 9, 0, "closed"),
        # Sleep, or another network.
        ([*OPEN, ("jumped", 1.0, ())], 0, "half-open"),
        ([failed(), ("jumped", 0.0, ())], 0, "closed"),
    ],
)
def test_the_pause_after_failed_dials(steps: list[Step], pause: float, breaker: str) -> None:
    pacing, now = after(steps)
    assert max(0.0, pacing.dial_at - now) == pytest.approx(pause)
    assert pacing.breaker == breaker
    assert pacing.may_dial(now + pause)
    assert pause == 0 or not pacing.may_dial(now + pause * 0.99)


@pytest.mark.parametrize(
    ("steps", "pause", "flapping"),
    [
        ([up(), lost(100, 100)], 0, False),
        ([up(), lost(1, 1)], 0, False),
        ([up(), lost(1, 1), up(), lost(1, 1)], 0, False),
        ([up(), lost(1, 1)] * 3, 1, True),
        ([up(), lost(1, 1)] * 4, 2, True),
        ([up(), lost(1, 1)] * 20, 15, True),
        ([*[up(), lost(1, 1)] * 4, up(), lost(60, 60)], 0, False),
        # Three sessions that one cut ends are one loss.
        ([up(), lost(1, 1), lost(0.1, 1), lost(0.1, 1)], 0, False),
    ],
)
def test_the_pause_after_sessions_that_die_young(steps: list[Step], pause: float, flapping: bool) -> None:
    pacing, now = after(steps)
    assert max(0.0, pacing.dial_at - now) == pytest.approx(pause)
    assert pacing.is_flapping == flapping
    assert pacing.breaker == "closed"


@pytest.mark.parametrize(
    ("steps", "pause"),
    [
        # Somewhere within 45 s: the dice show a half.
        ([up(), farewell(100, 100)], 22.5),
        ([up(), farewell(1, 1)] * 2, 22.5),
        ([up(), farewell(1, 1)] * 3, 0.5),
        ([up(), farewell(1, 1)] * 5, 2),
        ([*[up(), farewell(1, 1)] * 5, up(), farewell(100, 100)], 22.5),
        # Somebody waits for a session, or not; the last session is lost; the machine slept.
        ([up(), farewell(100, 100), waited_for(2, True)], 0),
        ([up(), farewell(100, 100), waited_for(2, False)], 20.5),
        ([*[up(), farewell(1, 1)] * 5, waited_for(0, True)], 2),
        ([up(), farewell(100, 100), lost(1, 100)], 0),
        ([up(), farewell(100, 100), ("jumped", 1.0, ())], 0),
    ],
)
def test_the_pause_after_farewells(steps: list[Step], pause: float) -> None:
    pacing, now = after(steps)
    assert max(0.0, pacing.dial_at - now) == pytest.approx(pause)
    assert pacing.failures == 0


def test_a_dial_that_waits_for_a_look_up_starts_when_that_is_done() -> None:
    pacing, now = after([failed(0.0, "ech-disabled", "look-up")])
    assert not pacing.may_dial(now + 1000)
    pacing.healed(now + 2)
    assert pacing.may_dial(now + 2)
    # What did not wait is not hurried.
    pacing.failed(now + 2, "tcp-refused")
    pacing.healed(now + 2)
    assert not pacing.may_dial(now + 2)


def test_failures_may_be_met_with_a_better_plan_twice_in_a_row() -> None:
    pacing, now = after([])
    assert pacing.may_heal
    pacing.failed(now, "ech-rejected", "at-once")
    assert pacing.may_heal
    pacing.failed(now, "ech-rejected", "at-once")
    assert not pacing.may_heal
    pacing.up(now)
    assert pacing.may_heal


def test_what_the_server_asks_for_is_waited_at_least() -> None:
    pacing, now = after([])
    pacing.failed(now, "websocket-status", retry_after=120.0)
    assert pacing.dial_at == now + 120
    pacing.failed(now, "token-rejected", retry_after=1.0)
    assert pacing.dial_at > now + 10


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.5), (0.5, 1.0), (0.999, 1.5)])
def test_pauses_are_spread_by_half_each_way(uniform: float, factor: float) -> None:
    pacing = Pacing(Timing(), lambda: uniform)
    for _ in range(4):
        pacing.failed(0.0, "tcp-refused")
    assert pacing.dial_at == pytest.approx(4 * factor, rel=0.01)
