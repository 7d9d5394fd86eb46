"""Several servers behind one tunnel: what programs notice when one of them is killed, and that modes can be mixed."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from harness import socks
from harness.fleet import Fleet, Requests, outlive_the_first
from harness.ports import unused_port
from harness.targets import pattern, pattern_sha256
from harness.waiting import wait_until

if TYPE_CHECKING:
    from ech_workers.config import Mode
    from ech_workers.options.client import Reply
    from harness.tunnel import Site


def test_one_of_three_is_killed_and_no_new_request_fails(fleet: Fleet, targets: dict[str, int]) -> None:
    outlive_the_first(fleet, targets["echo"])


@pytest.mark.parametrize("modes", [["simple", "yamux"], ["yamux", "simple"], ["simple", "simple"]])
def test_modes_can_be_mixed(site: Site, targets: dict[str, int], modes: list[Mode]) -> None:
    fleet = Fleet(site, modes)
    try:
        requests = Requests(fleet.tunnel, targets["echo"])
        wait_until(lambda: len(requests.done) > 50, "requests are served")
        fleet.programs[0].process.kill()
        killed = time.monotonic()
        wait_until(lambda: requests.served_since(killed + 1) > 50, "they are served", 20)
        requests.stop()
        assert requests.failed_since(killed + 1) == []
        assert fleet.roles == ["down", "in use"]
    finally:
        fleet.close()


@pytest.mark.parametrize("modes", [["simple", "yamux"], ["simple", "simple"]], ids="-".join)
def test_a_server_in_simple_mode_that_stops_answering_is_left_before_its_dials_are_over(
    site: Site, targets: dict[str, int], modes: list[Mode]
) -> None:
    """It takes connections and says nothing, which a dial waits for ten seconds long if there is no other server."""
    fleet = Fleet(site, modes)
    try:
        requests = Requests(fleet.tunnel, targets["echo"])
        wait_until(lambda: len(requests.done) > 50, "requests are served")
        fleet.programs[0].process.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: fleet.roles == ["down", "in use"], "new connections go to the second", 8)
        fleet.programs[0].process.signal(signal.SIGCONT)
        wait_until(lambda: fleet.roles[0] == "in use", "the first is in use again", 90)
        requests.stop()
        # What was being dialled went to the second; what had begun went on with the first one.
        assert requests.failed_since(stopped - 20) == []
    finally:
        fleet.close()


def bytes_echoed(address: tuple[str, int], port: int, size: int) -> None:
    with socks.connect(address, "127.0.0.1", port) as connection:
        connection.sendall(bytes(size))
        assert socks.exactly(connection, size) == bytes(size)


@pytest.mark.parametrize("modes", [["yamux", "simple"], ["simple", "yamux"]], ids="-".join)
def test_dials_and_bytes_are_counted_for_each_server(site: Site, targets: dict[str, int], modes: list[Mode]) -> None:
    fleet = Fleet(site, modes)
    try:
        bytes_echoed(fleet.port, targets["echo"], 5000)
        # A session counts at the end of its turn, after the program has got the bytes.
        wait_until(lambda: fleet.tunnel.snapshot().bytes_down == 5000, "the first 5000 bytes are counted", 20)
        [first, second] = fleet.tunnel.snapshot().upstreams
        assert (first.bytes_up, first.bytes_down) == (5000, 5000)
        assert (second.bytes_up, second.bytes_down) == (0, 0)
        assert second.dials_total >= 1
        fleet.programs[0].process.kill()
        # In simple mode the next connection finds out.
        requests = Requests(fleet.tunnel, targets["echo"])
        wait_until(lambda: fleet.roles == ["down", "in use"], "the second server is used", 20)
        wait_until(lambda: fleet.tunnel.snapshot().upstreams[1].bytes_down > 0, "it carries the requests", 20)
        requests.stop()
        wait_until(lambda: fleet.tunnel.snapshot().dials_failed >= 1, "the first server is dialled in vain", 20)
        now = fleet.tunnel.snapshot()
        # What the server that is down carried is not lost with its sessions.
        assert now.upstreams[0].bytes_down == 5000
        assert sum(each.bytes_down for each in now.upstreams) == now.bytes_down
        assert now.upstreams[0].dials_failed == now.dials_failed
        assert sum(each.dials_total for each in now.upstreams) == now.dials_total
    finally:
        fleet.close()


MIXED: list[tuple[Mode, Mode]] = [("yamux", "yamux"), ("yamux", "simple"), ("simple", "yamux"), ("simple", "simple")]


@pytest.mark.parametrize("reply", ["optimistic", "confirmed"])
@pytest.mark.parametrize("modes", MIXED, ids="-".join)
def test_a_target_that_one_server_cannot_reach_is_reached_by_the_next(
    site: Site, targets: dict[str, int], modes: tuple[Mode, Mode], reply: Reply
) -> None:
    """A program that sends more than is kept for the next server before it hears of anything."""
    size = 200_003
    fleet = Fleet(site, modes, strict=[0], reply=reply)
    try:
        for _ in range(3):
            with socks.connect(fleet.port, "127.0.0.1", targets["digest"]) as connection:
                for piece in pattern(size):
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
                assert json.loads(socks.until_end(connection)) == {"bytes": size, "sha256": pattern_sha256(size)}
        # The first server was asked once: that it cannot reach this target is remembered.
        wait_until(lambda: fleet.unreached == [1, 0], "it is counted", 20)
        assert fleet.tunnel.status().upstreams[0].unreached_why == "its rules forbid them"
        assert fleet.tunnel.snapshot().targets_failed == 0
    finally:
        fleet.close()


@pytest.mark.parametrize("modes", MIXED, ids="-".join)
def test_when_no_server_reaches_a_target_the_program_hears_what_the_last_one_said(
    site: Site, modes: tuple[Mode, Mode]
) -> None:
    fleet = Fleet(site, modes, strict=[0, 1], reply="confirmed")
    try:
        with pytest.raises(socks.ReplyError) as refused:
            socks.connect(fleet.port, "127.0.0.1", unused_port())
        assert refused.value.reply == 2
        wait_until(lambda: fleet.unreached == [1, 0], "the second server was asked", 20)
        assert fleet.tunnel.snapshot().targets_failed == 1
    finally:
        fleet.close()


def test_a_target_that_refuses_connections_is_not_asked_of_every_server(site: Site) -> None:
    fleet = Fleet(site, ["yamux", "yamux"], reply="confirmed")
    try:
        with pytest.raises(socks.ReplyError) as refused:
            socks.connect(fleet.port, "127.0.0.1", unused_port())
        assert refused.value.reply == 5
        assert fleet.unreached == [0, 0]
    finally:
        fleet.close()


@pytest.mark.parametrize("reply", ["optimistic", "confirmed"])
@pytest.mark.parametrize("modes", MIXED, ids="-".join)
def test_a_target_that_the_first_server_cannot_reach_brings_up_the_cold_one_that_can(
    site: Site, targets: dict[str, int], modes: tuple[Mode, Mode], reply: Reply
) -> None:
    fleet = Fleet(site, modes, strict=[0], reply=reply, standby="cold")
    try:
        assert not fleet.tunnel.status().upstreams[1].sessions
        with socks.connect(fleet.port, "127.0.0.1", targets["echo"]) as connection:
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"
        wait_until(lambda: fleet.unreached == [1, 0], "it is counted", 20)
        assert fleet.tunnel.snapshot().targets_failed == 0
    finally:
        fleet.close()


@pytest.mark.parametrize("mode", ["yamux", "simple"])
def test_if_the_cold_server_is_dead_the_program_hears_what_the_first_one_said(site: Site, mode: Mode) -> None:
    fleet = Fleet(site, ["yamux", mode], strict=[0], reply="confirmed", standby="cold")
    try:
        fleet.programs[1].process.kill()
        for _ in range(2):
            with pytest.raises(socks.ReplyError) as refused:
                socks.connect(fleet.port, "127.0.0.1", unused_port())
            assert refused.value.reply == 2
    finally:
        fleet.close()
