"""The deployed client (Go) against our server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.ech import ech_key
from harness.processes import run
from harness.targets import pattern_sha256
from harness.tunnel import PATH, PUBLIC_NAME, SERVER_NAME, TOKEN, ServerProgram, Site

MODES = ["yamux", "simple"]


def client(
    site: Site,
    go_peers: dict[str, Path],
    server: ServerProgram,
    *flags: str | Path,
    mode: str = "yamux",
    token: str = TOKEN,
    path: str = PATH,
    ech: str | None = "",
) -> subprocess.CompletedProcess[str]:
    return run(
        go_peers["deployed_client"],
        *("-server", f"127.0.0.1:{server.port}", "-server-name", SERVER_NAME, "-token", token, "-path", path),
        *("-ca", site.authority.path, "-mode", mode, "-ech", site.key.base64 if ech == "" else ech or "", *flags),
    )


def events(output: str, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, output.splitlines()) if line["event"] == event]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ech", [True, False], ids=["ech", "no-ech"])
def test_fetches(site: Site, go_peers: dict[str, Path], targets: dict[str, int], mode: str, ech: bool) -> None:
    size, streams = 2_000_003, 8
    url = f"http://localhost:{targets['http']}/bytes/{size}"
    done = client(
        site,
        go_peers,
        site.server(ech=ech),
        "-fetch",
        url,
        "-streams",
        str(streams),
        mode=mode,
        ech="" if ech else None,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(answer["status"], answer["sha256"]) for answer in events(done.stdout, "fetched")] == [
        (200, pattern_sha256(size))
    ] * streams
    assert {handshake["ech"] for handshake in events(done.stdout, "handshake")} == {ech}


@pytest.mark.parametrize("mode", MODES)
def test_echo_of_ten_megabytes(site: Site, go_peers: dict[str, Path], targets: dict[str, int], mode: str) -> None:
    done = client(
        site,
        go_peers,
        site.server(),
        "-echo",
        f"127.0.0.1:{targets['echo']}",
        "-size",
        str(10 << 20),
        "-streams",
        "3",
        mode=mode,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [answer["equal"] for answer in events(done.stdout, "echoed")] == [True] * 3


@pytest.mark.parametrize(
    ("token", "path"), [("another-token", PATH), (TOKEN, "/elsewhere"), ("", PATH), (f"{TOKEN}x", PATH)]
)
def test_decoy_for_a_wrong_token_or_path(
    site: Site, go_peers: dict[str, Path], targets: dict[str, int], token: str, path: str
) -> None:
    done = client(site, go_peers, site.server(), "-echo", f"127.0.0.1:{targets['echo']}", token=token, path=path)
    assert done.returncode == 1
    assert "bad handshake" in done.stdout, done.stdout
    assert events(done.stdout, "upgraded") == []


def test_101_repeats_the_token(site: Site, go_peers: dict[str, Path], targets: dict[str, int]) -> None:
    done = client(site, go_peers, site.server(), "-echo", f"127.0.0.1:{targets['echo']}", "-size", "1000")
    (upgraded,) = events(done.stdout, "upgraded")
    assert upgraded["protocol"] == TOKEN


def test_stale_key_gets_retry_configurations(site: Site, go_peers: dict[str, Path], tmp_path: Path) -> None:
    stale = ech_key(tmp_path / "stale", PUBLIC_NAME, 99)
    done = client(site, go_peers, site.server(), "-echo", "127.0.0.1:1", ech=stale.base64)
    assert done.returncode == 1
    (failed,) = events(done.stdout, "failed")
    assert failed["retry_configs"] == site.key.base64


def test_refused_target_in_simple_mode_is_an_error_message(site: Site, go_peers: dict[str, Path]) -> None:
    done = client(site, go_peers, site.server(), "-echo", "127.0.0.1:1", mode="simple")
    assert done.returncode == 1
    assert "ERROR:" in done.stdout, done.stdout


def test_refused_target_in_yamux_mode_closes_the_stream(site: Site, go_peers: dict[str, Path]) -> None:
    done = client(site, go_peers, site.server(), "-echo", "127.0.0.1:1", "-size", "1000")
    assert done.returncode == 1
    assert events(done.stdout, "failed"), done.stdout
