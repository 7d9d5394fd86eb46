"""Other networks than the machine's own, and the machine's when it changes: in namespaces, with the real programs."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from harness import namespaces

if TYPE_CHECKING:
    from pathlib import Path

    from harness.tunnel import Site


@pytest.mark.parametrize("scenario", ["nat64", "other_route"])
def test_the_server_is_reached_on_such_a_network(scenario: str, tmp_path: Path) -> None:
    if not namespaces.are_possible():
        pytest.skip("this user may not make network namespaces")
    namespaces.run(scenario, tmp_path)


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
