"""Several servers behind one tunnel, while servers die, freeze, change their keys, and the network between lies."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from harness.ech import ech_key
from harness.fleet import Fleet, Requests
from harness.tunnel import PUBLIC_NAME, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def test_one_that_stops_answering_is_left_within_three_seconds(fleet: Fleet, targets: dict[str, int]) -> None:
    requests = Requests(fleet.tunnel, targets["echo"])
    wait_until(lambda: len(requests.done) > 50, "requests are served")
    fleet.programs[0].process.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        wait_until(lambda: fleet.roles[1] == "in use", "new connections go to the second", 5)
        assert time.monotonic() - stopped < 4
        # Those that had begun hang with their server; new ones are served.
        with fleet.tunnel.create_connection(("127.0.0.1", targets["echo"]), 5.0) as stream:
            stream.sendall(b"hello")
            assert stream.recv(5) == b"hello"
    finally:
        fleet.programs[0].process.signal(signal.SIGCONT)
    wait_until(lambda: fleet.roles[0] == "in use", "the first is in use again", 60)
    requests.stop()
    assert requests.failed_since(stopped + 4) == []


def test_all_are_killed_and_one_comes_back(fleet: Fleet, targets: dict[str, int]) -> None:
    for program in fleet.programs:
        program.process.kill()
    wait_until(lambda: fleet.tunnel.status().phase not in ("up", "degraded"), "none is left", 20)
    fleet.restart(2)
    wait_until(lambda: fleet.roles[2] == "in use", "the third is used", 90)
    with fleet.tunnel.create_connection(("127.0.0.1", targets["echo"]), 10.0) as stream:
        stream.sendall(b"hello")
        assert stream.recv(5) == b"hello"


def test_a_path_that_freezes_is_left_within_three_seconds(fleet: Fleet, targets: dict[str, int]) -> None:
    requests = Requests(fleet.tunnel, targets["echo"])
    wait_until(lambda: len(requests.done) > 50, "requests are served")
    fleet.paths[0].thawed.clear()
    frozen = time.monotonic()
    wait_until(lambda: fleet.roles[1] == "in use", "new connections go to the second", 5)
    assert time.monotonic() - frozen < 4
    wait_until(lambda: sum(began > frozen + 4 for began, _, _ in requests.done) > 50, "they are served", 40)
    fleet.paths[0].thawed.set()
    requests.stop()
    assert requests.failed_since(frozen + 4) == []


def test_keys_that_rotate_on_one_server_are_nothing_to_the_others(fleet: Fleet, targets: dict[str, int]) -> None:
    requests = Requests(fleet.tunnel, targets["echo"])
    for number in range(5):
        ech_key(fleet.site.keys_folder, PUBLIC_NAME, 100 + number)
        fleet.paths[0].break_connections()
        time.sleep(1)
    wait_until(lambda: "down" not in fleet.roles, "every server is there", 20)
    over = time.monotonic()
    wait_until(lambda: sum(began > over for began, _, _ in requests.done) > 50, "requests are served", 20)
    requests.stop()
    assert requests.failed_since(over) == []


def test_a_resolver_that_lies_takes_no_server_away(site: Site, targets: dict[str, int]) -> None:
    fleet = Fleet(site, ["yamux", "yamux", "yamux"], looked_up=True)
    requests = Requests(fleet.tunnel, targets["echo"])
    fleet.site.resolver.behaviour = "garbage"
    fleet.paths[0].break_connections()
    cut = time.monotonic()
    wait_until(lambda: sum(began > cut + 1 for began, _, _ in requests.done) > 50, "requests are served", 20)
    wait_until(lambda: "down" not in fleet.roles, "every server is there again", 20)
    requests.stop()
    assert requests.failed_since(cut + 1) == []
    fleet.close()
