"""The sessions of one server: which are missing, and which are to be replaced."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from ech_workers.pool import Dial, Pool
from ech_workers.timing import Timing
from harness.native import stand_in


def up(dial: int, session: int) -> Any:
    return stand_in("SessionUp")(dial=dial, session=session, address="192.0.2.1:443")


def dialling(pool: Pool, number: int, replaces: int | None = None) -> None:
    pool.dials[number] = Dial(stand_in("DialPlan"), replaces, None)  # the pool does not look into plans


def pool(mode: Literal["yamux", "simple"] = "yamux", wanted: int = 1, *, live: int = 0) -> Pool:
    made = Pool(mode, wanted, Timing(session_age=600))
    for number in range(live):
        made.up(up(number, number), 0.0, 0.5)
    return made


@pytest.mark.parametrize(
    ("wanted", "live", "dials", "missing", "one_at_a_time"),
    [
        (1, 0, 0, 1, 1),
        (1, 0, 1, 0, 0),
        (1, 1, 0, 0, 0),
        # One finds out whether the server can be reached.
        (4, 0, 0, 1, 1),
        (4, 0, 1, 0, 0),
        (4, 1, 0, 3, 1),
        (4, 1, 3, 0, 0),
        (4, 1, 1, 2, 0),
        (4, 4, 0, 0, 0),
    ],
)
def test_what_is_missing(wanted: int, live: int, dials: int, missing: int, one_at_a_time: int) -> None:
    made = pool(wanted=wanted, live=live)
    for number in range(100, 100 + dials):
        dialling(made, number)
    assert made.missing(one_at_a_time=False) == missing
    assert made.missing(one_at_a_time=True) == one_at_a_time
    assert made.is_ready == (live > 0)
    assert made.is_full == (live >= wanted)


def test_simple_mode_needs_one_dial_that_worked() -> None:
    made = pool("simple", 8)
    assert (made.wanted, made.is_ready, made.missing(one_at_a_time=False)) == (1, False, 1)
    dialling(made, 1)
    assert made.missing(one_at_a_time=False) == 0
    assert made.up(up(1, 7), 0.0, 0.5) is None
    assert (made.is_ready, made.missing(one_at_a_time=False)) == (True, 0)
    made.verified = False
    assert (made.is_ready, made.missing(one_at_a_time=False)) == (False, 1)
    assert made.due(1e9) == []


def test_a_session_is_due_once_and_again_when_its_successor_could_not_be_had() -> None:
    made = pool(live=1)
    assert made.deadlines() == [600]
    assert made.due(599) == []
    assert made.due(600) == [0]
    dialling(made, 5, replaces=0)
    assert made.due(600) == []
    assert made.due(640) == []
    assert made.replaced_by(made.dials.pop(5)) is made.sessions[0]
    assert made.due(680) == [0]


def test_the_successor_names_the_session_that_it_replaces() -> None:
    made = pool(live=1)
    dialling(made, 5, replaces=0)
    assert made.up(up(5, 6), 600.0, 0.5) == 0
    assert made.sessions[0].retiring
    assert [session.up.session for session in made.live] == [6]
    assert made.missing(one_at_a_time=False) == 0


def test_a_successor_of_a_session_that_is_gone_fills_its_place() -> None:
    made = pool(live=1)
    dialling(made, 5, replaces=0)
    del made.sessions[0]
    assert made.missing(one_at_a_time=False) == 0
    assert made.up(up(5, 6), 600.0, 0.5) is None


def test_after_a_sleep_every_session_is_due() -> None:
    made = pool(wanted=2, live=2)
    made.renew_all(10.0)
    assert made.due(10.0) == [0, 1]
