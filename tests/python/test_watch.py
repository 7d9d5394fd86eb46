"""Whether sessions still answer, judged from their counters."""

from __future__ import annotations

from typing import Any

from ech_workers.watch import Watch
from harness.native import stand_in


def session(number: int = 1, *, sent: int = 0, heard_ago: float = 100.0, unanswered: float | None = None) -> Any:
    return stand_in("SessionSnapshot")(session=number, bytes_up=sent, heard_ago=heard_ago, unanswered=unanswered)


def test_a_session_over_which_nothing_is_sent_is_left_alone() -> None:
    watch = Watch()
    for second in range(100):
        assert watch.look([session(heard_ago=float(second))], float(second)) == set()
    assert not watch.silent


def test_a_session_that_answers_what_is_sent_is_left_alone() -> None:
    watch = Watch()
    for tick in range(100):
        assert watch.look([session(sent=tick * 1000, heard_ago=0.1)], tick * 0.4) == set()


def test_a_session_that_takes_data_and_gives_nothing_back_is_asked_and_then_counts_as_silent() -> None:
    watch = Watch()
    watch.look([session(), session(2)], 0.0)
    assert watch.look([session(sent=10, heard_ago=0.2), session(2, sent=10, heard_ago=0.1)], 0.4) == set()
    assert watch.look([session(sent=10, heard_ago=0.6), session(2, sent=10, heard_ago=0.1)], 0.8) == {1}
    assert watch.look([session(sent=10, unanswered=0.4)], 1.2) == set()
    assert not watch.silent
    watch.look([session(sent=10, unanswered=1.3)], 2.1)
    assert watch.silent == {1}


def test_a_session_is_asked_once_after_what_was_sent_over_it() -> None:
    watch = Watch()
    watch.look([session()], 0.0)
    asked = [watch.look([session(sent=10, heard_ago=second - 0.5)], second) for second in range(1, 100)]
    assert asked == [{1}, *[set()] * 98]


def test_an_answer_to_something_earlier_does_not_hide_that_the_rest_is_not_answered() -> None:
    watch = Watch()
    watch.look([session()], 0.0)
    # The answer to one of two streams comes after the look that saw both; then nothing more is sent.
    assert watch.look([session(sent=20, heard_ago=0.01)], 0.4) == set()
    assert watch.look([session(sent=20, heard_ago=0.3)], 0.8) == set()
    assert watch.look([session(sent=20, heard_ago=0.7)], 1.2) == {1}


def test_a_silent_session_that_answers_again_is_silent_no_more() -> None:
    watch = Watch()
    watch.look([session(unanswered=5.0)], 0.0)
    assert watch.silent == {1}
    watch.look([session(heard_ago=0.1)], 0.4)
    assert not watch.silent


def test_sessions_that_are_gone_are_forgotten() -> None:
    watch = Watch()
    watch.look([session(unanswered=5.0)], 0.0)
    watch.look([], 0.4)
    assert not watch.silent
    assert not watch._sent
