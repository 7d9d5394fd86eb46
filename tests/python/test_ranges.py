"""Networks and long lists of addresses: what is tried, in which order."""

from __future__ import annotations

import ipaddress
import random

import pytest

from ech_workers.ranges import FEW, REMEMBERED, ROUNDS, Ranges


def made(*given: str, good: tuple[str, ...] = ()) -> Ranges:
    return Ranges(given, good, random.Random(1).random)


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
    ranges = Ranges(["192.0.2.0/24"], ["192.0.2.9"], random.Random(1).random, lambda good, wall: kept.append(good))
    ranges.worked("192.0.2.9", 1.0)
    assert not kept
    ranges.stopped("192.0.2.9", 2.0)
    assert kept == [()]
    assert "192.0.2.9" not in ranges.current
    assert ranges.current
    only = made("192.0.2.7/32")
    only.stopped("192.0.2.7", 0.0)
    assert only.current == ("192.0.2.7",)


def test_after_several_rounds_a_pause_is_due() -> None:
    ranges = made("192.0.2.0/24")
    assert [ranges.failed() for _ in range(ROUNDS)] == [True] * (ROUNDS - 1) + [False]
    ranges.worked(ranges.current[0], 0.0)
    assert ranges.failed()
