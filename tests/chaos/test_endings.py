"""Servers that hand over to one another while programs connect: no opening is lost, whatever the server had done with it."""

import random
import signal
import time

import pytest

from harness.openings import Openings
from harness.tap import Tap
from harness.tunnel import ServerProgram, Site
from harness.waiting import wait_until

ROUNDS = 5


def behind(path: Tap, site: Site) -> ServerProgram:
    server = site.server("--drain", "30", "--max-streams", "40", publish=False)
    path.upstream = ("127.0.0.1", server.port)
    return server


@pytest.mark.timeout(300)
def test_no_opening_is_lost_when_servers_hand_over(site: Site, targets: dict[str, int]) -> None:
    """Some openings are with the old server and some wait in the session when it says goodbye; some are refused for want of room.
    Sometimes the server stands still before."""
    dice = random.Random(1)
    with Tap() as path:
        server = behind(path, site)
        site.publish(path.port, site.key.base64)
        proxy = site.proxy(path.port, "--open-timeout", "60")
        for number in range(ROUNDS):
            # The proxy has a session with this server: while it has none, a dial that fails is told to those who wait.
            first = Openings(proxy, targets["echo"], 1)
            first.join()
            assert first.failures == []
            if number % 2:
                server.process.signal(signal.SIGSTOP)
            openings = Openings(proxy, targets["echo"], 120)
            if number % 2:
                wait_until(openings.are_under_way, "the openings", 30)
            else:
                time.sleep(dice.uniform(0, 0.1))
            successor = behind(path, site)
            server.process.signal(signal.SIGTERM)
            server.process.signal(signal.SIGCONT)
            openings.join()
            assert openings.failures == []
            assert server.process.wait(40) == 0, server.process.output
            server = successor
        assert "panicked" not in proxy.process.output
