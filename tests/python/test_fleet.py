"""A hundred thousand clients lose their server at once: how their dials arrive when it is back, by a virtual clock.

The clients are ``Pacing`` itself, the server is a queue that completes so many handshakes a second. docs/scale.md has the
figures.
"""

from __future__ import annotations

import heapq
import random
from typing import NamedTuple

import pytest

from ech_workers.pacing import Pacing
from ech_workers.timing import Timing

CLIENTS = 100_000

ACCEPTS = 2_000
"""Handshakes that the server completes in a second."""

PATIENCE = 10.0
"""Seconds that a dial waits for its handshake."""


class Outcome(NamedTuple):
    peak: int
    """The most dials that arrived in one second, once there was a server to take them."""
    back_after: float
    """Seconds until everyone was back, counted from when there was a server again."""
    wasted: int
    """Dials that arrived in vain while there was one."""


def simulate(
    *,
    down_for: float,
    refused_after: float,
    clients: int = CLIENTS,
    accepts: int = ACCEPTS,
    drained: bool = False,
    busy: float = 0.0,
) -> Outcome:
    """The server is lost at 0 and back after ``down_for`` seconds; until then a dial fails after ``refused_after``.
    drained: it says goodbye, as one does that another one takes over from. busy: the part of the clients where somebody
    waits for a session within a second."""
    dice = random.Random(1)
    timing = Timing()
    pacings = [Pacing(timing, dice.random) for _ in range(clients)]
    queue: list[tuple[float, int]] = []
    for number, pacing in enumerate(pacings):
        pacing.up(0.0)
        if drained:
            pacing.farewell(0.0, 3600.0)
            if dice.random() < busy:
                pacing.look(dice.random(), is_waited_for=True)
        else:
            pacing.lost(0.0, 3600.0)
        # A client hears of the loss within a round trip.
        heapq.heappush(queue, (pacing.dial_at + 0.1 * dice.random(), number))
    arrivals: dict[int, int] = {}
    free_at = down_for
    back_at = 0.0
    wasted = 0
    while queue:
        now, number = heapq.heappop(queue)
        pacing = pacings[number]
        pacing.begin()
        if now < down_for:
            failed_at = now + refused_after
        else:
            arrivals[int(now - down_for)] = arrivals.get(int(now - down_for), 0) + 1
            free_at = max(free_at, now)
            # One that would wait for longer than its patience takes no part of the server's time.
            if free_at - now <= PATIENCE:
                free_at += 1 / accepts
                pacing.up(free_at)
                back_at = max(back_at, free_at)
                continue
            wasted += 1
            failed_at = now + PATIENCE
        pacing.failed(failed_at, "tcp-refused")
        heapq.heappush(queue, (pacing.dial_at, number))
    return Outcome(max(arrivals.values()), back_at - down_for, wasted)


# Down for so long, and how soon a dial fails meanwhile: a process that is killed refuses at once, a blocked address is
# silent until the client gives up.
CASES = {
    "killed, back after 30 s": (30.0, 0.05),
    "killed, back after 10 min": (600.0, 0.05),
    "its address blocked for 10 min": (600.0, 5.0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [10, pytest.param(1, marks=(pytest.mark.slow, pytest.mark.timeout(600)))])
def test_the_dials_of_a_whole_fleet_are_spread_when_the_server_is_back(case: str, scale: int) -> None:
    clients, accepts = CLIENTS // scale, ACCEPTS // scale
    outcome = simulate(down_for=CASES[case][0], refused_after=CASES[case][1], clients=clients, accepts=accepts)
    # What the server takes in a second, times this; everyone is back within two and a half minutes.
    assert outcome.peak <= 2 * accepts
    assert outcome.back_after <= 150
    assert outcome.wasted <= clients // 20


@pytest.mark.parametrize("scale", [10, pytest.param(1, marks=(pytest.mark.slow, pytest.mark.timeout(600)))])
@pytest.mark.parametrize(("busy", "most"), [(0.0, 1.6), (0.01, 1.9), (0.1, 6.5)])
def test_a_fleet_that_is_told_to_go_comes_over_45_s_and_those_first_who_need_it(
    busy: float, most: float, scale: int
) -> None:
    clients, accepts = CLIENTS // scale, ACCEPTS // scale
    outcome = simulate(down_for=0.0, refused_after=0.0, clients=clients, accepts=accepts, drained=True, busy=busy)
    assert outcome.peak <= most * accepts
    assert outcome.back_after <= 60
    assert outcome.wasted == 0


def test_a_fleet_that_a_server_can_take_at_once_is_back_within_the_longest_pause() -> None:
    outcome = simulate(down_for=600.0, refused_after=0.05, clients=1_000)
    assert outcome.back_after <= 1.6 * Timing().breaker_limit
    assert outcome.wasted == 0
