"""A tunnel with several real servers, and programs that ask for something through it all the time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ech_workers import Tunnel
from ech_workers.config import ClientConfig, ListenAddress, Resolver, ServerAddress, UpstreamConfig

from .secrecy import WATCH
from .tap import Tap
from .tunnel import PATH, SERVER_NAME, TOKEN, Site
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ech_workers.config import Mode
    from ech_workers.options.client import Policy, Reply, Standby


class Requests:
    """A program that asks for something every few milliseconds, each time over a connection of its own."""

    def __init__(self, tunnel: Tunnel, port: int) -> None:
        self._tunnel = tunnel
        self._port = port
        self._over = threading.Event()
        self.done: list[tuple[float, float, str]] = []
        """When each began and ended, and how."""
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while not self._over.wait(0.01):
            began = time.monotonic()
            try:
                with self._tunnel.create_connection(("127.0.0.1", self._port), 15.0) as stream:
                    stream.sendall(b"hello")
                    how = "good" if stream.recv(5) == b"hello" else "cut"
            except OSError as error:
                how = str(error)
            self.done.append((began, time.monotonic(), how))

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def failed_since(self, moment: float) -> list[str]:
        """How the requests ended that began after ``moment`` and failed."""
        return [how for began, _, how in self.done if began >= moment and how != "good"]

    def served_since(self, moment: float) -> int:
        """How many requests that began after ``moment`` have ended."""
        return sum(began > moment for began, _, _ in self.done)

    def slowest_since(self, moment: float) -> float:
        return max(ended - began for began, ended, _ in self.done if began >= moment)


def outlive_the_first(fleet: Fleet, port: int) -> None:
    """Kills the first server while programs ask for something, and has it come back: no request fails that began later."""
    requests = Requests(fleet.tunnel, port)
    wait_until(lambda: len(requests.done) > 50, "requests are served")
    fleet.programs[0].process.kill()
    killed = time.monotonic()
    wait_until(lambda: fleet.roles[:2] == ["down", "in use"], "new connections go to the second", 20)
    wait_until(lambda: requests.served_since(killed + 1) > 50, "they are served", 20)
    fleet.restart(0)
    wait_until(lambda: fleet.roles[0] == "in use", "the first is in use again", 90)
    requests.stop()
    assert requests.failed_since(killed + 1) == []
    assert len(requests.failed_since(0)) <= 4


# What a server is started with so that it shows its figures, or not.
_FIGURES: dict[bool, tuple[str, ...]] = {False: (), True: ("--status-listen", "127.0.0.1:0")}


class Fleet:
    """Real servers, and a tunnel that knows all of them."""

    def __init__(
        self,
        site: Site,
        modes: Sequence[Mode],
        *,
        looked_up: bool = False,
        strict: Collection[int] = (),
        reply: Reply = "optimistic",
        standby: Standby = "warm",
        networks: Collection[int] = (),
        limits: Mapping[int, int] | None = None,
        policy: Policy = "priority",
        weights: Sequence[int] = (),
        counted: bool = False,
    ) -> None:
        """looked_up: where the servers are and their ECH configurations come from the site's resolver. strict: the servers that
        reach none of a test's targets. networks: those whose address is given as a network, so that each new address is probed.
        limits: the bytes of each connection that come back from these servers. weights: of the servers; 1 each if there are none.
        counted: the servers say how many streams they were asked for."""
        self.site = site
        self.programs = [
            site.server(*_FIGURES[counted], publish=False, private_targets=number not in strict)
            for number in range(len(modes))
        ]
        self._counted = counted
        self.paths = [Tap(("127.0.0.1", program.port)) for program in self.programs]
        for number, limit in (limits or {}).items():
            self.paths[number].limit = limit
        for path in self.paths if looked_up else ():
            site.publish(path.port, site.key.base64)
        servers = tuple(
            UpstreamConfig(
                name=f"server-{number}",
                server=ServerAddress(SERVER_NAME, path.port, PATH),
                token=TOKEN,
                mode=mode,
                server_ips=() if looked_up else ("127.0.0.1/32" if number in networks else "127.0.0.1",),
                ech_config=None if looked_up else site.key.config_list,
                priority=number,
                weight=weights[number] if weights else 1,
            )
            for number, (path, mode) in enumerate(zip(self.paths, modes, strict=True))
        )
        config = ClientConfig(
            server=servers[0].server,
            servers=servers,
            resolvers=(Resolver.parse(site.resolver.url, ("127.0.0.1",)),),
            ca_pem=site.authority.path.read_bytes(),
            listen=(ListenAddress("127.0.0.1", 0),),
            reply=reply,
            standby=standby,
            policy=policy,
        )
        self.tunnel = Tunnel.from_config(config)
        self.tunnel.start()
        self._is_open = True
        WATCH.port(self.port[1], lambda: self._is_open)
        self.tunnel.wait_ready(20)
        kept = 1 if standby == "cold" else len(modes)
        wait_until(lambda: "down" not in self.roles[:kept], "every server that is kept up is up", 20)

    @property
    def port(self) -> tuple[str, int]:
        """The SOCKS5 port."""
        return self.tunnel.addresses[0]

    @property
    def unreached(self) -> list[int]:
        """For each server how many connections went on to the next one."""
        return [upstream.unreached for upstream in self.tunnel.status().upstreams]

    @property
    def roles(self) -> list[str]:
        return [upstream.role for upstream in self.tunnel.status().upstreams]

    def restart(self, number: int) -> None:
        port = self.programs[number].port
        options = _FIGURES[self._counted]
        self.programs[number] = self.site.server(*options, listen=f"127.0.0.1:{port}", publish=False)

    def streams(self, number: int) -> int:
        """How many streams a server that is counted was asked for since it began."""
        return int(self.programs[number].figure("ech_workers_server_streams_total"))

    def close(self) -> None:
        self._is_open = False
        self.tunnel.close()
        for path in self.paths:
            path.stop()
