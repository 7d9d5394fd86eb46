"""The policy "spread" with real servers: how many connections each server gets, counted there, in both modes."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ech_workers import routing
from harness.fleet import Fleet
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ech_workers import StreamSocket
    from ech_workers.config import Mode
    from harness.tunnel import Site

MODES: list[tuple[Mode, Mode]] = [("yamux", "yamux"), ("yamux", "simple"), ("simple", "yamux"), ("simple", "simple")]


@contextlib.contextmanager
def held(fleet: Fleet, port: int, count: int, *, at_once: bool = False) -> Iterator[None]:
    """So many connections, one after the other or at once, all of them open as long as this lasts; nothing is left of them then."""

    def begin(_: int) -> StreamSocket:
        stream = fleet.tunnel.create_connection(("127.0.0.1", port), 30.0)
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        return stream

    with contextlib.ExitStack() as streams:
        if at_once:
            with ThreadPoolExecutor(count) as threads:
                opened = list(threads.map(begin, range(count)))
        else:
            opened = [begin(number) for number in range(count)]
        for stream in opened:
            streams.enter_context(stream)
        yield
    wait_until(lambda: fleet.tunnel.snapshot().connections == 0, "the connections are over")
    wait_until(lambda: not any(each.streams for each in fleet.tunnel.snapshot().sessions), "the streams are over")


@pytest.mark.parametrize("at_once", [False, True], ids=["in-turn", "at-once"])
@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_connections_are_shared_by_weight(
    site: Site, targets: dict[str, int], modes: tuple[Mode, Mode], at_once: bool
) -> None:
    fleet = Fleet(site, modes, policy="spread", weights=(1, 3), counted=True)
    try:
        wait_until(lambda: fleet.roles == ["in use", "in use"], "both are used")
        with held(fleet, targets["echo"], 40, at_once=at_once):
            assert [fleet.streams(0), fleet.streams(1)] == [10, 30]
    finally:
        fleet.close()


@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_a_server_that_was_down_gets_its_share_again(
    site: Site, targets: dict[str, int], modes: tuple[Mode, Mode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "PROBATION_FIRST", 1.0)
    fleet = Fleet(site, modes, policy="spread", weights=(3, 1), counted=True)
    try:
        # In simple mode a connection waits for its first use, which would be lost with the server.
        with held(fleet, targets["echo"], 4):
            assert [fleet.streams(0), fleet.streams(1)] == [3, 1]
        fleet.programs[0].process.kill()
        if modes[0] == "yamux":
            wait_until(lambda: fleet.roles[0] == "down", "its session is lost")
        # All of them are served, by the one that is left.
        with held(fleet, targets["echo"], 20):
            assert fleet.streams(1) == 1 + 20
        wait_until(lambda: fleet.roles == ["down", "in use"], "it is known to be down")
        fleet.restart(0)
        wait_until(lambda: fleet.roles == ["in use", "in use"], "it is used again", 60)
        with held(fleet, targets["echo"], 40):
            assert [fleet.streams(0), fleet.streams(1)] == [30, 1 + 20 + 10]
    finally:
        fleet.close()
