"""No output of a program and no log file has a secret in it, and neither the network nor programs that use the port are told the
server's name: what the harness looks for in every test."""

from __future__ import annotations

import socket
import threading
import urllib.request
from typing import TYPE_CHECKING

import pytest

from harness import socks
from harness.processes import Processes
from harness.secrecy import SPELLINGS, WATCH, heard
from harness.tap import Tap
from harness.tunnel import SERVER_NAME, TOKEN, ProxyProgram, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_program_that_says_its_token_fails_the_test_that_started_it(tmp_path: Path) -> None:
    program = tmp_path / "ech-workers"
    program.write_text('#!/bin/sh\necho "the token is $2"\n')
    program.chmod(0o700)
    started = Processes()
    started.start(program, "--token", "s3cret-of-somebody").wait()
    with pytest.raises(AssertionError, match="s3cr"):
        started.stop()


def test_a_log_file_with_a_private_key_fails_it_too(tmp_path: Path) -> None:
    program = tmp_path / "ech-workers"
    program.write_text('#!/bin/sh\necho "-----BEGIN PRIVATE KEY-----" >"$2"\n')
    program.chmod(0o700)
    started = Processes()
    started.start(program, "--log-file", tmp_path / "log").wait()
    with pytest.raises(AssertionError, match="PRIV"):
        started.stop()


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_a_token_that_is_refused_is_in_no_log_at_the_most_talkative(site: Site, tmp_path: Path, form: str) -> None:
    """Here the secret is at its most tempting: it is what the message is about."""
    logs = [tmp_path / "server.log", tmp_path / "proxy.log"]
    server = site.server("--log-level", "debug", "--log-format", form, "--log-file", logs[0])
    wrong = "not-the-right-token"
    proxy = site.proxy(
        server.port, "--log-level", "debug", "--log-format", form, "--log-file", logs[1], token=wrong, wait=False
    )
    wait_until(lambda: "token" in logs[1].read_text(), "it is refused")
    assert proxy.process.running
    for log in logs:
        assert TOKEN not in log.read_text()
        assert wrong not in log.read_text()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_name_that_goes_out_in_clear_fails_the_test_that_has_a_tap_there(spelling: bytes) -> None:
    with pytest.raises(AssertionError, match="in clear"), Tap() as tap:
        with socket.create_connection(("127.0.0.1", tap.port), timeout=20) as client:
            client.sendall(b"\x16\x03\x01" + spelling)
        wait_until(lambda: spelling in tap.everything, "it is recorded", 20)


def test_an_answer_that_names_the_server_fails_the_test_that_hears_it() -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\n\r\n%s is away" % SERVER_NAME.encode()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(AssertionError, match="names the server"):
            socks.until_end(ours)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            with listener.accept()[0] as accepted:
                accepted.recv(3)
                accepted.sendall(b"\x05\x00")
                accepted.recv(512)
                accepted.sendall(b"\x05\x00\x00\x03" + bytes([len(SERVER_NAME)]) + SERVER_NAME.encode() + b"\0\0")

        serving = threading.Thread(target=refuse)
        serving.start()
        with pytest.raises(AssertionError, match="names the server"):
            socks.connect(listener.getsockname(), "target.test", 80)
        serving.join(20)


def test_a_raw_answer_of_a_proxy_that_names_the_server_is_found_whoever_reads_it(processes: Processes) -> None:
    """Also in two pieces, in a thread that keeps its errors to itself, and through a file object."""
    name = SERVER_NAME.encode()
    running = processes.start("sleep", "60")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for first, second in ((b"503 " + name[:9], name[9:]), (b"503 ", name), (b"503 ", b"nobody")):
                with listener.accept()[0] as accepted:
                    accepted.sendall(first)
                    accepted.recv(1)
                    accepted.sendall(second)

        def read(whole: Callable[[socket.socket], bytes]) -> None:
            with socket.create_connection(program.address, timeout=20) as connection:
                connection.recv(100)
                connection.sendall(b"x")
                whole(connection)

        def through_file(connection: socket.socket) -> bytes:
            with connection.makefile("rb") as file:
                return file.read()

        program = ProxyProgram(running, listener.getsockname()[1])
        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        for whole, times in ((lambda connection: connection.recv(100), 1), (through_file, 1), (through_file, 0)):
            reading = threading.Thread(target=read, args=(whole,), daemon=True)
            reading.start()
            reading.join(20)
            assert len(WATCH.take()) == times
        answering.join(20)


def test_the_proxys_configuration_for_browsers_names_no_server(site: Site) -> None:
    """/proxy.pac, with a session and without one."""
    server = site.server()
    proxy = site.proxy(server.port, "--status-listen", "0")
    port = int(proxy.process.wait_line(r"status page on http://127\.0\.0\.1:(\d+)/").group(1))

    def script() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/proxy.pac", timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("application/x-ns-proxy-autoconfig")
            return heard(answer.read() + str(answer.headers).encode())

    assert f'"PROXY 127.0.0.1:{proxy.port}"'.encode() in script()
    server.process.kill()
    proxy.process.wait_line("refused")
    assert b"function FindProxyForURL" in script()
