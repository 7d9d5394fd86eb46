"""Log lines in JSON: an object each, with what the line is about where it is about one thing. The same on both sides."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from harness import socks
from harness.tunnel import SERVER_NAME
from harness.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from harness.tunnel import Site

    Line = dict[str, Any]


class Log:
    """A log file that a program writes in JSON."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.options = ("--log-format", "json", "--log-level", "debug", "--log-file", file)

    def lines(self) -> list[Line]:
        """All of it. Each line parses and has the fields that every line has."""
        found = [json.loads(line) for line in self._file.read_text().splitlines()] if self._file.exists() else []
        for line in found:
            assert line.keys() >= {"time", "level", "logger", "message"}
            assert line.keys() <= {
                "time",
                "level",
                "logger",
                "message",
                "layer",
                "code",
                "server",
                "session",
                "exception",
            }
        return found

    def wait(self, said: str) -> Line:
        """The first line that has this in its message, once it is there."""

        def found() -> list[Line]:
            return [line for line in self.lines() if said in line["message"]]

        wait_until(lambda: bool(found()), f"the log has {said!r}", 30)
        return found()[0]


def about(line: Line) -> tuple[str | None, str | None, int | None]:
    return line.get("layer"), line.get("code"), line.get("session")


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_a_servers_lines_name_the_session_and_what_failed(
    site: Site, targets: dict[str, int], tmp_path: Path, mode: str
) -> None:
    log = Log(tmp_path / "server.log")
    server = site.server("--max-sessions", "1", *log.options)
    proxy = site.proxy(server.port, mode, "--reply", "confirmed")
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as connection:
        connection.sendall(b"a")
        assert socks.exactly(connection, 1) == b"a"
        begins = log.wait("begins: ")
        number = begins["session"]
        assert about(begins) == (None, None, number)
        assert number >= 1
        second = site.proxy(server.port, "--control", "", wait=False)
        if mode == "--no-yamux":
            with contextlib.suppress(OSError, EOFError, socks.ReplyError):
                socks.connect(second.address, "127.0.0.1", targets["echo"]).close()
        assert about(log.wait("a session was refused")) == ("websocket", "server-full", None)
        second.process.stop()
        if mode == "--yamux":
            with pytest.raises(socks.ReplyError):
                socks.connect(proxy.address, "127.0.0.1", 1)
            refused = log.wait("a target could not be reached")
            assert about(refused) == ("target", "target-refused", number)
    proxy.process.stop()
    assert log.wait("ended")["session"] == number


def test_a_servers_lines_name_the_layer_and_the_code_of_a_client_that_is_refused(site: Site, tmp_path: Path) -> None:
    log = Log(tmp_path / "server.log")
    server = site.server(*log.options)
    stranger = site.proxy(server.port, token="not-the-right-token", wait=False)
    assert about(log.wait("without a token that is accepted")) == ("token", "token-rejected", None)
    stranger.process.stop()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    layer, code, session = about(log.wait("handshake with"))
    assert (layer, session) == ("tls", None)
    assert str(code).startswith("tls-")
    assert "not-the-right-token" not in (tmp_path / "server.log").read_text()


def test_a_servers_lines_about_files_say_that_the_configuration_is_meant(site: Site, tmp_path: Path) -> None:
    log = Log(tmp_path / "server.log")
    certificate = dataclasses.replace(site.inner, chain=tmp_path / "chain.pem")
    shutil.copy(site.inner.chain, certificate.chain)
    server = site.server(*log.options, certificate=certificate)
    (site.keys_folder / "no-file.pem").mkdir()
    assert about(log.wait("cannot be read")) == ("config", "config-invalid", None)
    (site.keys_folder / "nonsense.pem").write_text("nonsense")
    assert about(log.wait("is left out")) == ("config", "config-invalid", None)
    certificate.chain.write_text("nonsense")
    assert about(log.wait("the certificates in use stay")) == ("config", "config-invalid", None)
    os.kill(server.process.pid, signal.SIGHUP)
    assert about(log.wait("not reloaded")) == ("config", "config-invalid", None)


def test_a_proxys_lines_name_the_server_and_the_session_too(site: Site, tmp_path: Path) -> None:
    """Of a session that comes up and is lost, and of the dials that fail behind it: those of the engine and those of what decides."""
    log = Log(tmp_path / "proxy.log")
    server = site.server()
    proxy = site.proxy(server.port, *log.options, wait=False)
    up = log.wait("session up")
    server.process.kill()

    def refused() -> dict[str, Line]:
        return {line["logger"]: line for line in log.lines() if "connection refused" in line["message"]}

    def both() -> bool:
        """The engine and what decides."""
        parts = {logger.startswith("ech_workers.tunnel.") for logger in refused()}
        return parts == {False, True}

    wait_until(both, "both parts say it", 30)
    lost = log.wait("session lost")
    name = f"{SERVER_NAME}:{server.port}"
    assert (up["server"], up["session"]) == (name, lost["session"])
    assert (lost["layer"], lost["server"]) == ("tcp", name)
    assert str(lost["code"]).startswith("tcp-")
    for line in refused().values():
        assert (line["layer"], line["code"], line["server"]) == ("tcp", "tcp-refused", name)
    assert proxy.process.running
