"""Fixtures of the interop tests: the deployed server as a program that the site's resolver knows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.deployed import DeployedServer
from harness.processes import Processes
from harness.tunnel import TOKEN, Site


@pytest.fixture
def deployed_server(site: Site, processes: Processes, go_peers: dict[str, Path]) -> Callable[..., DeployedServer]:
    """Starts the deployed server with more flags; `publish` tells the resolver of it."""

    def start(
        *flags: str | Path, ech: bool = True, outer: bool = True, publish: bool = True, token: str = TOKEN
    ) -> DeployedServer:
        keys: list[str | Path] = ["-ech-retry-key", site.key.path] if ech else []
        certificates = [site.inner, site.outer] if outer else [site.inner]
        process = processes.start(
            go_peers["deployed_server"],
            *(word for each in certificates for word in ("-certificate", f"{each.chain}:{each.key}")),
            *("-token", token, *keys, *flags),
        )
        port = int(process.wait_event("listening")["address"].rpartition(":")[2])
        if publish:
            site.publish(port, site.key.base64 if ech else None)
        return DeployedServer(process, port)

    return start
