"""Several servers behind one tunnel: what programs notice when one of them is killed, and that modes can be mixed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from harness.fleet import Fleet, Requests
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ech_workers.config import Mode
    from harness.tunnel import Site


@pytest.fixture
def fleet(site: Site) -> Iterator[Fleet]:
    made = Fleet(site, ["yamux", "yamux", "yamux"])
    yield made
    made.close()


def test_one_of_three_is_killed_and_no_new_request_fails(fleet: Fleet, targets: dict[str, int]) -> None:
    requests = Requests(fleet.tunnel, targets["echo"])
    wait_until(lambda: len(requests.done) > 50, "requests are served")
    fleet.programs[0].process.kill()
    killed = time.monotonic()
    wait_until(lambda: fleet.roles[:2] == ["down", "in use"], "new connections go to the second", 2)
    wait_until(lambda: sum(began > killed + 1 for began, _, _ in requests.done) > 50, "they are served", 20)
    fleet.restart(0)
    wait_until(lambda: fleet.roles[0] == "in use", "the first is in use again", 90)
    requests.stop()
    assert requests.failed_since(killed + 1) == []
    assert requests.failed_since(0) == [] or len(requests.failed_since(0)) <= 4


@pytest.mark.parametrize("modes", [["simple", "yamux"], ["yamux", "simple"], ["simple", "simple"]])
def test_modes_can_be_mixed(site: Site, targets: dict[str, int], modes: list[Mode]) -> None:
    fleet = Fleet(site, modes)
    try:
        requests = Requests(fleet.tunnel, targets["echo"])
        wait_until(lambda: len(requests.done) > 50, "requests are served")
        fleet.programs[0].process.kill()
        killed = time.monotonic()
        wait_until(lambda: sum(began > killed + 1 for began, _, _ in requests.done) > 50, "they are served", 20)
        requests.stop()
        assert requests.failed_since(killed + 1) == []
        assert fleet.roles == ["down", "in use"]
    finally:
        fleet.close()
