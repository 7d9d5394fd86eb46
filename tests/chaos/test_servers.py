"""Several servers behind one tunnel, while servers die, freeze, change their keys, and the network between lies."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest

from harness.ech import ech_key
from harness.fleet import Fleet, Requests, outlive_the_first
from harness.tunnel import PUBLIC_NAME, Site
from harness.waiting import wait_until


def test_one_of_three_is_killed_and_no_new_request_fails(fleet: Fleet, targets: dict[str, int]) -> None:
    outlive_the_first(fleet, targets["echo"])


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
    wait_until(lambda: requests.served_since(frozen + 4) > 50, "they are served", 40)
    fleet.paths[0].thawed.set()
    requests.stop()
    assert requests.failed_since(frozen + 4) == []


@pytest.mark.timeout(300)
def test_a_server_whose_connections_stop_after_some_kilobytes_is_used_last(
    fleet: Fleet, targets: dict[str, int]
) -> None:
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            with (
                contextlib.suppress(OSError),
                fleet.tunnel.create_connection(("127.0.0.1", targets["http"]), 5.0) as stream,
            ):
                stream.settimeout(5.0)
                stream.sendall(b"GET /bytes/300000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                while stream.recv(65536):
                    pass

    fleet.paths[0].limit = 18_000
    fleet.paths[0].break_connections()
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_until(lambda: fleet.roles[:2] == ["demoted", "in use"], "the first is used last", 120)
    finally:
        over.set()
        asking.join(30)
    stops_after = fleet.tunnel.status().upstreams[0].stops_after
    assert stops_after is not None
    assert stops_after < 18_000
    requests = Requests(fleet.tunnel, targets["echo"])
    wait_until(lambda: len(requests.done) > 50, "requests are served")
    requests.stop()
    assert requests.failed_since(0) == []


def test_keys_that_rotate_on_one_server_are_nothing_to_the_others(fleet: Fleet, targets: dict[str, int]) -> None:
    requests = Requests(fleet.tunnel, targets["echo"])
    for number in range(5):
        ech_key(fleet.site.keys_folder, PUBLIC_NAME, 100 + number)
        fleet.paths[0].break_connections()
        time.sleep(1)
    wait_until(lambda: "down" not in fleet.roles, "every server is there", 20)
    over = time.monotonic()
    wait_until(lambda: requests.served_since(over) > 50, "requests are served", 20)
    requests.stop()
    assert requests.failed_since(over) == []


def test_a_resolver_that_lies_takes_no_server_away(site: Site, targets: dict[str, int]) -> None:
    fleet = Fleet(site, ["yamux", "yamux", "yamux"], looked_up=True)
    requests = Requests(fleet.tunnel, targets["echo"])
    fleet.site.resolver.behaviour = "garbage"
    fleet.paths[0].break_connections()
    cut = time.monotonic()
    wait_until(lambda: requests.served_since(cut + 1) > 50, "requests are served", 20)
    wait_until(lambda: "down" not in fleet.roles, "every server is there again", 20)
    requests.stop()
    assert requests.failed_since(cut + 1) == []
    fleet.close()
