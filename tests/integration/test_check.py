"""``ech-workers check``: it names the layer that fails, what to try, and exits with that layer's code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from harness.doh_servers import NAME
from harness.ech import EchKey, ech_key
from harness.ports import unused_port
from harness.processes import run
from harness.tap import Tap
from harness.tunnel import COMMAND, PATH, PUBLIC_NAME, RESOLVER_NAME, SERVER_NAME, TOKEN, Site

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from harness.authority import Authority

NEW_KEYS = "new keys from the server, which rejected the configuration"


def check(
    site: Site, port: int, *options: str | Path, token: str = TOKEN, path: str = PATH
) -> subprocess.CompletedProcess[str]:
    return run(
        COMMAND,
        "check",
        "--server",
        f"{SERVER_NAME}:{port}{path}",
        "--token",
        token,
        "--doh-server",
        site.resolver.url,
        "--doh-ip",
        "127.0.0.1",
        "--ca-file",
        site.authority.path,
        *options,
        env=site.environment,
        timeout=90,
    )


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_ends_at(done: subprocess.CompletedProcess[str], layer: str, code: str, exit_code: int) -> dict[str, Any]:
    rows = rows_of(done)
    assert done.returncode == exit_code, done.stdout + done.stderr
    failing = [row for row in rows if row["ok"] is False and row["decides"]]
    assert [(row["layer"], row["code"]) for row in failing] == [(layer, code)], rows
    return failing[0]


def test_of_several_servers_one_that_works_is_enough_and_else_the_first_ones_failure_counts(
    site: Site, targets: dict[str, int]
) -> None:
    server, closed = site.server(), unused_port()

    def several(*servers: tuple[int, str]) -> subprocess.CompletedProcess[str]:
        """Ports, and the tokens that are shown there."""
        fixed = f"server-ip=127.0.0.1,ech-config={site.key.base64}"
        given = [
            word
            for number, (port, token) in enumerate(servers)
            for word in ("--server", f"{SERVER_NAME}:{port}{PATH},token={token},{fixed},name=number-{number}")
        ]
        url = f"http://127.0.0.1:{targets['http']}/bytes/1000"
        options = ("--json", "--ca-file", site.authority.path, "--target", url)
        return run(COMMAND, "check", *given, *options, env=site.environment, timeout=90)

    done = several((closed, TOKEN), (server.port, TOKEN))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done)
    assert [row["code"] for row in rows if row["ok"] is False and row["decides"]] == ["tcp-refused"]
    assert "target" in [row["layer"] for row in rows if row["ok"]]
    done = several((server.port, "another-token"), (closed, TOKEN))
    failing = [row["code"] for row in rows_of(done) if row["ok"] is False and row["decides"]]
    assert failing == ["token-rejected", "tcp-refused"]
    assert done.returncode == several((server.port, "another-token")).returncode
    assert done.returncode != several((closed, TOKEN)).returncode


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_everything_works(site: Site, targets: dict[str, int], mode: str) -> None:
    server = site.server()
    url = f"http://127.0.0.1:{targets['http']}/bytes/3000000"
    done = check(site, server.port, mode, "--json", "--target", url)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done)
    assert all(row["ok"] is not False for row in rows)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    expected = ["resolver", "ech", "address", "tcp", "tls", "certificate", "websocket", "token", "yamux", "target"]
    assert layers == [layer for layer in expected if layer != "yamux" or mode == "--yamux"]
    whole = " ".join(row["what"] for row in rows)
    assert f"the network saw {PUBLIC_NAME}" in whole
    assert "MB/s" in whole
    fingerprint = next(row["what"] for row in rows if "JA4" in row["what"])
    # The profile's lists: 16 cipher suites, 17 extensions; the hello of a first contact, offered with a name.
    assert "JA4 t13d1617h2_" in fingerprint


def test_rows_for_people_say_the_same(site: Site, targets: dict[str, int]) -> None:
    done = check(site, site.server().port, "--target", f"127.0.0.1:{targets['http']}/")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("resolver", RESOLVER_NAME, "tcp", "certificate", "websocket", "token", "yamux", "everything works"):
        assert word in done.stdout
    assert SERVER_NAME not in done.stderr


def test_wrong_token(site: Site) -> None:
    row = assert_ends_at(check(site, site.server().port, "--json", token="wrong"), "token", "token-rejected", 9)
    assert "--token" in row["advice"]


def test_nobody_listens(site: Site) -> None:
    port = unused_port()
    site.publish(port, site.key.base64)
    assert_ends_at(check(site, port, "--json"), "tcp", "tcp-refused", 4)


def test_a_reset_behind_the_hello_is_called_what_it_probably_is(site: Site) -> None:
    with Tap() as blocked:
        site.publish(blocked.port, site.key.base64)
        done = check(site, blocked.port, "--json")
        row = assert_ends_at(done, "tls", "tls-reset", 5)
        assert "probably" in row["what"]
        assert "block" in row["what"]
        assert any(row["subject"].startswith("--profile") for row in rows_of(done))
        assert SERVER_NAME.encode() not in blocked.everything


def test_an_expired_certificate(site: Site, authority: Authority) -> None:
    server = site.server(certificate=authority.issue(SERVER_NAME, expired=True))
    assert_ends_at(check(site, server.port, "--json"), "certificate", "certificate-expired", 7)


def test_no_record(site: Site) -> None:
    server = site.server(publish=False)
    site.resolver.add(SERVER_NAME, "A", "127.0.0.1")
    row = assert_ends_at(check(site, server.port, "--json"), "ech", "ech-no-config", 6)
    assert "--ech-domain" in row["advice"]


def test_the_resolver_is_down(site: Site) -> None:
    server = site.server()
    site.resolver.stop()
    assert_ends_at(check(site, server.port, "--json"), "resolver", "tcp-refused", 3)


def test_one_resolver_of_two_is_enough(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    port = unused_port()
    target = f"http://127.0.0.1:{targets['http']}/bytes/10"
    done = run(
        COMMAND,
        "check",
        "--json",
        "--server",
        f"{SERVER_NAME}:{server.port}{PATH}",
        "--token",
        TOKEN,
        "--doh-server",
        f"https://{NAME}:{port}/dns-query",
        "--doh-server",
        site.resolver.url,
        "--doh-ip",
        "127.0.0.1",
        "--doh-ip",
        "127.0.0.1",
        "--ca-file",
        site.authority.path,
        "--target",
        target,
        env=site.environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["ok"] for row in rows_of(done)[:2]] == [False, True]


def test_a_target_that_cannot_be_reached(site: Site) -> None:
    port = unused_port()
    done = check(site, site.server().port, "--json", "--target", f"http://127.0.0.1:{port}/")
    row = rows_of(done)[-1]
    assert (row["layer"], row["ok"]) == ("target", False)
    assert done.returncode == 11, done.stdout + done.stderr


def test_a_target_that_is_no_url(site: Site) -> None:
    done = check(site, 443, "--target", "ftp://example.org/")
    assert done.returncode == 2
    assert "--target" in done.stderr


def test_stale_keys_are_healed_and_kept(site: Site, targets: dict[str, int]) -> None:
    server = site.server(publish=False)
    site.publish(server.port, stale(site).base64)
    url = f"http://127.0.0.1:{targets['http']}/bytes/10"
    done = check(site, server.port, "--json", "--target", url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        rf"accepted with {NEW_KEYS} from the HTTPS record of {SERVER_NAME}, \d+ s old; the net", done.stdout
    )
    again = check(site, server.port, "--json", "--target", url)
    assert again.returncode == 0
    assert "handed over by the server" in again.stdout
    assert NEW_KEYS not in again.stdout


def test_stale_keys_are_told_of_when_a_later_layer_fails(site: Site) -> None:
    server = site.server(publish=False)
    site.resolver.add(SERVER_NAME, "A", "127.0.0.1")
    given = stale(site).base64
    done = check(site, server.port, "--json", "--ech-config", given, token="wrong")
    assert_ends_at(done, "token", "token-rejected", 9)
    assert f"accepted with {NEW_KEYS} given by --ech-config" in done.stdout
    again = check(site, server.port, "--json", "--ech-config", given, token="wrong")
    assert_ends_at(again, "token", "token-rejected", 9)
    # As the client does: what the server handed over replaces the option that it rejected.
    assert NEW_KEYS not in again.stdout


def test_ech_is_not_called_accepted_when_the_public_names_certificate_fails(site: Site, authority: Authority) -> None:
    site.outer = authority.issue(PUBLIC_NAME, expired=True)
    server = site.server(publish=False)
    site.publish(server.port, stale(site).base64)
    done = check(site, server.port, "--json")
    assert_ends_at(done, "certificate", "certificate-expired", 7)
    what = [row["what"] for row in rows_of(done) if row["layer"] == "ech"][-1]
    assert what.startswith(f"rejected: the configuration from the HTTPS record of {SERVER_NAME}")
    assert "accepted" not in done.stdout


def test_the_endpoint_of_the_next_priority_makes_up_for_the_first(site: Site, targets: dict[str, int]) -> None:
    server = site.server(publish=False)
    closed = unused_port()
    endpoints(site, f"down.test:{closed}", f"{SERVER_NAME}:{server.port}")
    url = f"http://127.0.0.1:{targets['http']}/bytes/10"
    done = check(site, 8450, "--json", "--target", url)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done)
    assert [(row["subject"], row["ok"], row["what"]) for row in rows if "endpoint" in row["what"]] == [
        (f"down.test:{closed}", None, f"endpoint 1 of 2, public name {PUBLIC_NAME}"),
        (f"{SERVER_NAME}:{server.port}", None, f"endpoint 2 of 2, public name {PUBLIC_NAME}"),
        (f"{SERVER_NAME}:{server.port}", True, "endpoint 2 of 2 is used"),
    ]
    refused = [row for row in rows if row["ok"] is False]
    assert [(row["layer"], row["code"], row["decides"]) for row in refused] == [("tcp", "tcp-refused", False)]


def test_the_last_endpoint_decides_when_each_fails(site: Site) -> None:
    closed = unused_port()
    endpoints(site, f"nowhere.test:{closed}", f"down.test:{closed}")
    site.resolver.remove("nowhere.test", "A")
    done = check(site, 8450, "--json")
    assert_ends_at(done, "tcp", "tcp-refused", 4)
    # An answer for down.test that comes after the first refusal (AAAA after A) leads to another dial.
    failed = dict.fromkeys((row["layer"], row["code"]) for row in rows_of(done) if row["ok"] is False)
    assert list(failed) == [("address", "resolver-no-name"), ("tcp", "tcp-refused")]


def test_what_another_endpoint_would_refuse_as_well_is_not_tried_there(site: Site) -> None:
    server = site.server(publish=False)
    endpoints(site, f"{SERVER_NAME}:{server.port}", f"down.test:{server.port}")
    done = check(site, 8450, "--json", token="wrong")
    assert_ends_at(done, "token", "token-rejected", 9)
    assert "endpoint 1 of 2" in done.stdout
    assert "endpoint 2 of 2" not in done.stdout


def endpoints(site: Site, *places: str) -> None:
    """HTTPS records of the server on port 8450, in the order of priority, with addresses."""
    records = []
    for priority, place in enumerate(places, 1):
        target, _, port = place.partition(":")
        site.resolver.add(target, "A", "127.0.0.1")
        records.append(f"{priority} {target}. port={port} ech={site.key.base64}")
    site.resolver.add(f"_8450._https.{SERVER_NAME}", "HTTPS", *records)


def stale(site: Site) -> EchKey:
    """A key that the server does not have."""
    return ech_key(site.folder / "old", PUBLIC_NAME, 99)
