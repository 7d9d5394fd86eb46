"""The Go peers against one another: what the other interop tests rest on."""

import json
from pathlib import Path

import pytest

from harness.processes import Processes, run
from harness.targets import pattern_sha256
from harness.tunnel import PUBLIC_NAME, SERVER_NAME, TOKEN, Site


@pytest.mark.parametrize("mode", ["yamux", "simple"])
def test_deployed_client_reaches_targets_through_deployed_server(
    site: Site, processes: Processes, go_peers: dict[str, Path], targets: dict[str, int], mode: str
) -> None:
    server = processes.start(
        go_peers["deployed_server"],
        *(
            "-certificate",
            f"{site.inner.chain}:{site.inner.key}",
            "-certificate",
            f"{site.outer.chain}:{site.outer.key}",
        ),
        *("-ech-retry-key", site.key.path, "-token", TOKEN),
    )
    address = server.wait_event("listening")["address"]
    client = [
        go_peers["deployed_client"],
        "-server",
        address,
        "-server-name",
        SERVER_NAME,
        "-token",
        TOKEN,
        "-ca",
        site.authority.path,
        "-mode",
        mode,
        "-ech",
        site.key.base64,
    ]
    size = 3 << 20
    fetched = run(*client, "-fetch", f"http://localhost:{targets['http']}/bytes/{size}", "-streams", "4")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    answers = [json.loads(line) for line in fetched.stdout.splitlines() if '"fetched"' in line]
    assert [(answer["status"], answer["bytes"], answer["sha256"]) for answer in answers] == [
        (200, size, pattern_sha256(size))
    ] * 4
    echoed = run(*client, "-echo", f"127.0.0.1:{targets['echo']}", "-size", str(10 << 20))
    assert echoed.returncode == 0, echoed.stdout + echoed.stderr
    server.wait_event("handshake", ech=True, server_name=SERVER_NAME, version="TLS 1.3")


def test_deployed_server_rejects_a_stale_key_and_hands_over_its_own(
    site: Site, processes: Processes, go_peers: dict[str, Path], tmp_path: Path
) -> None:
    from harness.ech import ech_key

    server = processes.start(
        go_peers["deployed_server"],
        *(
            "-certificate",
            f"{site.inner.chain}:{site.inner.key}",
            "-certificate",
            f"{site.outer.chain}:{site.outer.key}",
        ),
        *("-ech-retry-key", site.key.path, "-token", TOKEN),
    )
    address = server.wait_event("listening")["address"]
    stale = ech_key(tmp_path / "stale", PUBLIC_NAME, 9)
    failed = run(
        go_peers["deployed_client"],
        "-server",
        address,
        "-server-name",
        SERVER_NAME,
        "-token",
        TOKEN,
        "-ca",
        site.authority.path,
        "-ech",
        stale.base64,
        "-echo",
        "127.0.0.1:1",
    )
    assert failed.returncode == 1
    assert site.key.base64 in failed.stdout
    server.wait_event("handshake", ech=False, server_name=PUBLIC_NAME)
