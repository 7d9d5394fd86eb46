"""Networks and long lists of addresses: what is tried, in which order."""

from __future__ import annotations

import ipaddress
import random
from typing import TYPE_CHECKING

import pytest

from ech_workers.ech import Addresses, EchStore
from ech_workers.good_addresses import KEPT_FOR, GoodAddresses, Score
from ech_workers.ranges import FEW, KEPT_ANEW, REMEMBERED, ROUNDS, Ranges

if TYPE_CHECKING:
    from pathlib import Path


def made(*given: str, good: tuple[str, ...] = ()) -> Ranges:
    return Ranges(given, dict.fromkeys(good, Score(None, 0.0)), random.Random(1).random)


@pytest.mark.parametrize(
    ("given", "needed"),
    [(["192.0.2.1"], False), (["192.0.2.1"] * FEW, False), (["192.0.2.1"] * (FEW + 1), True), (["192.0.2.0/30"], True)],
)
def test_few_addresses_are_used_as_they_are(given: list[str], needed: bool) -> None:
    assert Ranges.is_needed(given) == needed


@pytest.mark.parametrize("network", ["192.0.2.0/24", "2001:db8::/32", "10.0.0.0/8"])
def test_a_few_at_a_time_and_none_twice_in_a_row(network: str) -> None:
    ranges = made(network)
    seen: list[str] = []
    for _ in range(20):
        assert len(ranges.current) == FEW
        assert all(ipaddress.ip_address(address) in ipaddress.ip_network(network) for address in ranges.current)
        seen += ranges.current
        ranges.failed()
    assert len(set(seen)) == len(seen)


def test_every_address_has_its_turn() -> None:
    ranges = made("192.0.2.0/28", "198.51.100.1/32")
    seen = set()
    for _ in range(40):
        seen |= set(ranges.current)
        ranges.failed()
    assert len(seen) == 17


def test_fewer_addresses_than_a_few_are_all_there() -> None:
    assert sorted(made("192.0.2.0/31").current) == ["192.0.2.0", "192.0.2.1"]


def test_what_worked_is_tried_first_and_remembered() -> None:
    ranges = made("192.0.2.0/24")
    for _ in range(100):
        ranges.worked(ranges.current[-1], 0.0)
        ranges.failed()
        ranges.worked(ranges.current[-1], 0.0)
    assert ranges.good[0] == ranges.current[0]
    assert len(ranges.good) <= REMEMBERED
    again = made("192.0.2.0/24", good=(*ranges.good, "203.0.113.7"))
    assert again.current[0] == ranges.good[0]
    assert "203.0.113.7" not in again.current


def test_what_worked_once_and_fails_is_good_no_more() -> None:
    ranges = made("192.0.2.0/24", good=("192.0.2.9",))
    assert ranges.current[0] == "192.0.2.9"
    ranges.failed()
    assert ranges.good == ()
    assert "192.0.2.9" not in ranges.current


def test_an_address_whose_session_became_silent_is_left_and_good_no_more() -> None:
    kept: list[tuple[str, ...]] = []
    good = {"192.0.2.9": Score(20.0, 0.0)}
    ranges = Ranges(["192.0.2.0/24"], good, random.Random(1).random, lambda good, wall: kept.append(tuple(good)))
    ranges.worked("192.0.2.9", 1.0)
    assert not kept
    ranges.stopped("192.0.2.9", 2.0)
    assert kept == [()]
    assert "192.0.2.9" not in ranges.current
    assert ranges.current
    only = made("192.0.2.7/32")
    only.stopped("192.0.2.7", 0.0)
    assert only.current == ("192.0.2.7",)


def test_the_one_that_took_the_least_time_comes_first_and_those_without_a_score_last() -> None:
    kept: list[dict[str, Score]] = []
    good = dict.fromkeys(("192.0.2.1", "192.0.2.2"), Score(None, 0.0))
    ranges = Ranges(["192.0.2.0/24"], good, random.Random(1).random, lambda good, wall: kept.append(dict(good)))
    ranges.scored("192.0.2.3", 80.0, 1.0)
    ranges.scored("192.0.2.2", 30.0, 2.0)
    ranges.worked("192.0.2.4", 3.0)
    assert ranges.good == ("192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.1")
    assert list(kept[-1].items()) == [
        ("192.0.2.2", Score(30.0, 2.0)),
        ("192.0.2.3", Score(80.0, 1.0)),
        ("192.0.2.4", Score(None, 3.0)),
        ("192.0.2.1", Score(None, 0.0)),
    ]
    assert ranges.is_unproved("192.0.2.4")
    assert not ranges.is_unproved("192.0.2.3")
    again = Ranges(["192.0.2.0/24"], kept[-1], random.Random(1).random)
    assert again.current == ranges.good
    assert not again.is_unproved("192.0.2.3")


def test_when_one_last_worked_is_kept_anew_after_a_day_and_outlives_a_week_of_use(tmp_path: Path) -> None:
    now = [1e9]
    store = EchStore(tmp_path, clock=lambda: now[0])

    def begun() -> Ranges:
        """As after a restart."""
        good = GoodAddresses(store, "one.test:443")
        return Ranges(["192.0.2.0/24"], good.load(), random.Random(1).random, good.save)

    ranges = begun()
    ranges.scored("192.0.2.1", 30.0, now[0])
    ranges.scored("192.0.2.2", 80.0, now[0])
    for _ in range(8):
        now[0] += KEPT_ANEW
        ranges.worked("192.0.2.2", now[0], is_proof=False)
    assert begun().good == ("192.0.2.2",)
    assert not begun().is_unproved("192.0.2.2")
    now[0] += KEPT_FOR
    assert begun().good == ()


def test_addresses_that_an_older_version_kept_have_the_time_of_them_all(tmp_path: Path) -> None:
    now = [1e9]
    store = EchStore(tmp_path, clock=lambda: now[0])
    store.store_addresses("one.test:443 --server-ip", Addresses(("192.0.2.1", "192.0.2.2"), now[0], KEPT_FOR, (30.0,)))
    good = GoodAddresses(store, "one.test:443")
    assert good.load() == {"192.0.2.1": Score(30.0, now[0]), "192.0.2.2": Score(None, now[0])}
    now[0] += KEPT_FOR
    assert good.load() == {}


def test_a_session_that_proves_nothing_makes_no_address_good() -> None:
    ranges = made("192.0.2.0/24")
    address = ranges.current[-1]
    ranges.worked(address, 1.0, is_proof=False)
    assert ranges.current[0] == address
    assert list(ranges.good) == []
    ranges.scored(address, 40.0, 2.0)
    assert list(ranges.good) == [address]
    ranges.scored("203.0.113.7", 1.0, 3.0)
    assert list(ranges.good) == [address]


def test_after_several_rounds_a_pause_is_due() -> None:
    ranges = made("192.0.2.0/24")
    assert [ranges.failed() for _ in range(ROUNDS)] == [True] * (ROUNDS - 1) + [False]
    ranges.worked(ranges.current[0], 0.0)
    assert ranges.failed()
