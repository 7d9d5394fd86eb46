"""`ech-workers demo --check`: what it proves, and which layer it names when something is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ech_workers import cli
from ech_workers.demo import Check, Demo, Step

if TYPE_CHECKING:
    from ech_workers.config import Mode


@pytest.mark.parametrize("mode", ["yamux", "simple"])
def test_every_layer_is_reported(mode: Mode) -> None:
    steps: list[Step] = []
    with Demo() as demo:
        assert Check(demo, steps.append).run(mode) is None
    assert all(step.passed for step in steps), steps
    layers = ["resolver", "HTTPS record", "tcp", "tls", "ech", "websocket"]
    if mode == "yamux":
        layers.append("yamux")
    assert [step.layer for step in steps] == [*layers, "SOCKS5", "HTTP CONNECT", "plain HTTP"]
    said = {step.layer: step for step in steps}
    assert said["ech"].what == "accepted; the network saw public.test, the server hidden.test"
    assert "firefox-120" in said["tls"].what
    assert "1,048,576 bytes down and 1,048,576 up" in said["SOCKS5"].what
    for layer in ("resolver", "tcp", "tls", "websocket", "SOCKS5"):
        assert said[layer].ms is not None


def failing(demo: Demo) -> Step:
    steps: list[Step] = []
    failed = Check(demo, steps.append).run("yamux")
    assert steps[-1].layer == failed
    assert not steps[-1].passed
    return steps[-1]


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
