"""Which servers new streams go to, by each policy, and when one that was lost is trusted again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ech_workers.routing import Routing, Tiers, View

if TYPE_CHECKING:
    from ech_workers.options.client import Policy


def view(number: int, *, works: bool = True, priority: int = 0, weight: int = 1, ms: float | None = None) -> View:
    return View(number, priority, weight, works, ms)


def order(tiers: Tiers) -> list[list[int]]:
    return [[number for number, _ in tier] for tier in tiers]


def test_the_lowest_priority_number_comes_first_and_equals_share_a_tier() -> None:
    routing = Routing("priority")
    views = [view(0, priority=2), view(1, priority=1, weight=3), view(2, priority=1), view(3, works=False)]
    assert routing.tiers(views, 0.0) == (((1, 3), (2, 1)), ((0, 1),), ((3, 1),))


@pytest.mark.parametrize("policy", ["priority", "fastest", "spread"])
def test_a_server_that_does_not_work_comes_last_at_once(policy: Policy) -> None:
    routing = Routing(policy)
    assert order(routing.tiers([view(0, ms=1.0), view(1, priority=1, ms=50.0)], 0.0))[0][0] == 0
    assert order(routing.tiers([view(0, works=False), view(1, priority=1, ms=50.0)], 0.1)) == [[1], [0]]


def test_a_server_that_was_lost_is_preferred_again_after_a_probation_that_grows() -> None:
    routing = Routing("priority")
    good, bad = [view(0), view(1, priority=1)], [view(0, works=False), view(1, priority=1)]
    now = 0.0
    assert order(routing.tiers(good, now)) == [[0], [1]]
    for probation in (5, 10, 20, 40, 80, 160, 300, 300):
        assert order(routing.tiers(bad, now + 1)) == [[1], [0]]
        assert order(routing.tiers(good, now + 2)) == [[1], [0]]
        assert routing.is_on_probation(0, now + 2)
        assert routing.deadline(now + 2) == now + 2 + probation
        assert order(routing.tiers(good, now + 2 + probation - 0.01)) == [[1], [0]]
        now += 2 + probation
        assert order(routing.tiers(good, now)) == [[0], [1]]
    # After a long time without a loss the earlier ones are forgiven.
    now += 1000
    routing.tiers(bad, now)
    routing.tiers(good, now)
    assert routing.deadline(now) == now + 5


def test_a_server_on_probation_is_better_than_one_that_does_not_work() -> None:
    routing = Routing("priority")
    routing.tiers([view(0), view(1, priority=1)], 0.0)
    routing.tiers([view(0, works=False), view(1, priority=1)], 1.0)
    assert order(routing.tiers([view(0), view(1, priority=1, works=False)], 2.0)) == [[0], [1]]


def test_all_that_work_share_by_weight() -> None:
    tiers = Routing("spread").tiers([view(0, weight=3), view(1, priority=7), view(2, works=False)], 0.0)
    assert tiers == (((0, 3), (1, 1)), ((2, 1),))


def test_the_fastest_stays_until_another_one_is_clearly_faster_for_a_while() -> None:
    routing = Routing("fastest")
    assert order(routing.tiers([view(0, ms=50.0), view(1, ms=40.0)], 0.0)) == [[1], [0]]
    # A little faster is no reason.
    for now in range(100):
        assert order(routing.tiers([view(0, ms=35.0), view(1, ms=40.0)], float(now)))[0] == [1]
    # Clearly faster for a moment is none either.
    for now in range(100, 161):
        ms = 10.0 if now % 5 else 39.0
        assert order(routing.tiers([view(0, ms=ms), view(1, ms=40.0)], float(now)))[0] == [1]
    for now in range(161, 171):
        assert order(routing.tiers([view(0, ms=10.0), view(1, ms=40.0)], float(now)))[0] == [1]
    assert order(routing.tiers([view(0, ms=10.0), view(1, ms=40.0)], 171.0)) == [[0], [1]]


def test_a_server_whose_round_trip_is_not_known_is_the_slowest() -> None:
    assert order(Routing("fastest").tiers([view(0), view(1, ms=900.0)], 0.0)) == [[1], [0]]


def test_two_servers_that_are_alike_and_take_turns_at_being_the_best_do_not_keep_each_other_away() -> None:
    routing = Routing("fastest")
    assert order(routing.tiers([view(0, ms=200.0)], 0.0)) == [[0]]
    for now in range(10):
        ms = (20.0, 20.1) if now % 2 else (20.1, 20.0)
        views = [view(0, ms=200.0), view(1, ms=ms[0]), view(2, ms=ms[1])]
        assert order(routing.tiers(views, float(now)))[0] == [0]
        assert routing.compared == {0, 1, 2}
    assert order(routing.tiers([view(0, ms=200.0), view(1, ms=20.0), view(2, ms=20.1)], 10.0))[0] == [1]
    assert routing.compared == set()


def test_a_difference_that_nobody_notices_is_no_reason_to_change() -> None:
    routing = Routing("fastest")
    routing.tiers([view(0, ms=0.5)], 0.0)
    for now in range(100):
        assert order(routing.tiers([view(0, ms=2.0), view(1, ms=0.2)], float(now)))[0] == [0]
    assert routing.compared == set()


def test_a_server_of_which_nothing_is_known_does_not_replace_another_such() -> None:
    routing = Routing("fastest")
    routing.tiers([view(1)], 0.0)
    for now in range(100):
        assert order(routing.tiers([view(0), view(1)], float(now)))[0] == [1]


def test_servers_that_do_not_work_any_more_are_not_compared() -> None:
    routing = Routing("fastest")
    routing.tiers([view(0, ms=90.0)], 0.0)
    routing.tiers([view(0, ms=90.0), view(1, ms=10.0)], 1.0)
    assert routing.compared == {0, 1}
    routing.tiers([view(0, works=False), view(1, works=False)], 2.0)
    assert routing.compared == set()
