"""`ech-workers demo --check`: what it proves, and which layer it names when something is broken."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pytest

from ech_workers import cli
from ech_workers.demo import Check, Demo

if TYPE_CHECKING:
    from ech_workers.config import Mode
    from ech_workers.finding import Row


@pytest.mark.parametrize("mode", ["yamux", "simple"])
def test_every_layer_is_reported(mode: Mode) -> None:
    rows: list[Row] = []
    with Demo() as demo:
        assert Check(demo, rows.append).run(mode) is None
    assert all(row.ok is not False for row in rows), rows
    layers = ["resolver", "ech", "address", "tcp", "tls", "certificate", "websocket", "token"]
    if mode == "yamux":
        layers.append("yamux")
    assert list(dict.fromkeys(row.layer for row in rows)) == [*layers, "target"]
    said = [f"{row.subject}: {row.what}" for row in rows]
    assert "hidden.test: accepted; the network saw public.test" in said
    assert any("firefox-153" in line for line in said)
    for name in ("SOCKS5", "HTTP CONNECT", "plain HTTP"):
        assert f"{name}: 1,048,576 bytes down and 1,048,576 up, SHA-256 equal" in said
    for layer in ("resolver", "tcp", "tls", "websocket", "target"):
        assert any(row.ms is not None for row in rows if row.layer == layer)


def test_without_a_place_for_temporary_files_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a root that is read-only."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    assert cli.run(["demo", "--check"]) == 2
    assert capsys.readouterr().err.startswith(
        "ech-workers: config: TMPDIR: no folder for temporary files can be written"
    )


def failing(demo: Demo) -> Row:
    rows: list[Row] = []
    failed = Check(demo, rows.append).run("yamux")
    assert rows[-1].layer == failed
    assert rows[-1].ok is False
    return rows[-1]


def test_a_resolver_that_is_gone_is_named() -> None:
    with Demo() as demo:
        demo.resolver.shutdown()
        demo.resolver.socket.close()
        step = failing(demo)
        assert step.layer == "resolver"


def test_a_wrong_token_is_named() -> None:
    with Demo() as demo:
        demo.token = "wrong"
        assert failing(demo).layer == "token"


def test_a_server_that_is_gone_is_named() -> None:
    with Demo() as demo:
        demo.server.close()
        assert failing(demo).layer == "tcp"


def test_a_target_that_is_gone_is_named() -> None:
    with Demo() as demo:
        demo.target.shutdown()
        demo.target.socket.close()
        assert failing(demo).layer == "target"


def test_the_command_prints_a_line_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--check"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "yamux mode"
    assert "simple mode" in lines
    assert lines[-1].startswith("all passed; the server counted ")
    assert lines[-1].endswith(" handshakes with ECH, 0 without")
