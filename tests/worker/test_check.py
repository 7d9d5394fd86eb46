"""`ech-workers check` against the Worker: it says that it is one, and what the platform refused."""

import json
from typing import Any

import pytest

from harness.json_resolver import JsonResolver
from harness.processes import run
from harness.tunnel import COMMAND, SERVER_NAME, TOKEN, Site
from harness.worker import Deployment, Worker

OUT_OF_REACH = ("127.0.0.1/32", "::1/128")
MODES = {"simple": "--no-yamux", "multiplexed": "--yamux"}


def rows(site: Site, worker: Worker, mode: str, target: str) -> list[dict[str, Any]]:
    done = run(
        *(COMMAND, "check", "--json", MODES[mode], "--server", f"{SERVER_NAME}:{worker.tls_port}{worker.entry_path}"),
        *("--token", TOKEN, "--doh-server", site.resolver.url, "--doh-ip", "127.0.0.1"),
        *("--ca-file", site.authority.path, "--target", target),
        env=site.environment,
        timeout=90,
    )
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("version", ["new"])
@pytest.mark.parametrize("mode", MODES)
def test_a_worker_is_recognised(site: Site, deployment: Deployment, targets: dict[str, int], mode: str) -> None:
    worker = deployment.start(MULTIPLEXED="on" if mode == "multiplexed" else "")
    found = rows(site, worker, mode, f"http://localhost:{targets['http']}/bytes/1000000")
    [opened] = [row for row in found if row["layer"] == "websocket"]
    assert opened["what"].startswith("open; a Cloudflare Worker; the server offers "), opened
    assert not [row for row in found if row["ok"] is False], found


@pytest.mark.parametrize("version", ["new"])
@pytest.mark.parametrize("mode", MODES)
def test_what_the_platform_refused_is_named(
    site: Site, deployment: Deployment, targets: dict[str, int], lookups: JsonResolver, mode: str
) -> None:
    worker = deployment.start(
        denied=OUT_OF_REACH,
        PLATFORM_PREFIXES=",".join(OUT_OF_REACH),
        MULTIPLEXED="on" if mode == "multiplexed" else "",
    )
    for target, why in (
        (f"http://localhost:{targets['http']}/", "on the platform's own addresses"),
        ("http://localhost:25/", "the platform closes port 25"),
        ("http://no-such-name.invalid/", "has no address"),
    ):
        [failed] = [row for row in rows(site, worker, mode, target) if row["ok"] is False]
        assert failed["layer"] == "target"
        assert why in failed["what"], failed
