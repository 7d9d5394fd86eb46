"""Other networks than the machine's own, and the machine's when it changes: in namespaces, with the real programs."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import namespaces

if TYPE_CHECKING:
    from harness.tunnel import Site


@pytest.mark.parametrize("scenario", ["nat64", "other_route", "other_route_simple"])
def test_the_server_is_reached_on_such_a_network(scenario: str, tmp_path: Path) -> None:
    if not namespaces.are_possible():
        pytest.skip("this user may not make network namespaces")
    namespaces.run(scenario, tmp_path)


@pytest.mark.parametrize("scenario", ["far_stream", "far_probe"])
def test_a_stream_to_a_far_server_gets_a_session_beside_it_before_it_is_a_bulk_transfer_and_a_probe_gets_none(
    scenario: str, tmp_path: Path, go_peers: dict[str, Path]
) -> None:
    if not namespaces.are_possible():
        pytest.skip("this user may not make network namespaces")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun for a delayed link")
    (tmp_path / "delay_link").symlink_to(go_peers["delay_link"])
    namespaces.run(scenario, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["nearest_yamux", "nearest_simple", "alike"])
def test_the_policy_fastest_goes_by_the_paths(scenario: str, tmp_path: Path, go_peers: dict[str, Path]) -> None:
    if not namespaces.are_possible():
        pytest.skip("this user may not make network namespaces")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun for a delayed link")
    (tmp_path / "delay_link").symlink_to(go_peers["delay_link"])
    namespaces.run(scenario, tmp_path, 300)


@pytest.mark.slow
def test_a_program_that_was_stopped_for_a_while_renews_its_sessions(site: Site) -> None:
    server = site.server()
    proxy = site.proxy(server.port, "--log-level", "debug")
    proxy.process.signal(signal.SIGSTOP)
    # What it takes to be noticed is a tick of 10 s and a jump of 5 s.
    time.sleep(20)
    before = len(proxy.process.lines)
    proxy.process.signal(signal.SIGCONT)
    proxy.process.wait_line("s are missing .*: every session is probed and renewed")
    proxy.wait_session(after=before)
