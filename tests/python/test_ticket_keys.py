"""Session ticket keys in a directory that servers share."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ech_workers import ConfigError
from ech_workers.config import ServerConfig
from ech_workers.server import TunnelServer
from ech_workers.ticket_keys import KEY_LENGTH, TicketKeyDirectory
from harness.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from harness.authority import Authority

NAME = "tunnel.test"


def write(folder: Path, name: str, content: bytes, modified: int) -> None:
    """As an operator should: the file is whole when it appears."""
    partial = folder / f"{name}.partial"
    partial.write_bytes(content)
    os.utime(partial, (modified, modified))
    partial.rename(folder / name)


def test_the_newest_key_seals_and_the_others_open(tmp_path: Path) -> None:
    write(tmp_path, "a.key", b"a" * KEY_LENGTH, 1_000)
    write(tmp_path, "b.key", b"b" * KEY_LENGTH, 3_000)
    write(tmp_path, "c.key", b"c" * KEY_LENGTH, 2_000)
    directory = TicketKeyDirectory(tmp_path)
    assert list(directory.keys) == [b"b" * KEY_LENGTH, b"c" * KEY_LENGTH, b"a" * KEY_LENGTH]
    assert not directory.refresh()
    (tmp_path / "b.key").unlink()
    assert directory.refresh()
    assert list(directory.keys) == [b"c" * KEY_LENGTH, b"a" * KEY_LENGTH]


def test_a_file_that_is_no_key_is_said_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "good.key", b"g" * KEY_LENGTH, 1_000)
    write(tmp_path, "short.key", b"s" * (KEY_LENGTH - 1), 2_000)
    write(tmp_path, "notes.txt", b"no key", 3_000)
    directory = TicketKeyDirectory(tmp_path)
    assert not directory.refresh()
    assert list(directory.keys) == [b"g" * KEY_LENGTH]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/short.key is left out: a ticket key has 80 bytes"
    ]


def test_keys_in_use_stay_when_the_directory_becomes_empty(tmp_path: Path) -> None:
    write(tmp_path, "a.key", b"a" * KEY_LENGTH, 1_000)
    directory = TicketKeyDirectory(tmp_path)
    (tmp_path / "a.key").unlink()
    assert not directory.refresh()
    assert list(directory.keys) == [b"a" * KEY_LENGTH]


def test_a_server_does_not_start_without_a_ticket_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no ticket key in"):
        TicketKeyDirectory(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        TicketKeyDirectory(tmp_path / "missing")


class Client:
    """Another maker's TLS client, which keeps the session of its last connection."""

    def __init__(self, authority: Authority) -> None:
        self._context = ssl.create_default_context(cafile=str(authority.path))
        self._session: ssl.SSLSession | None = None

    def resumes_at(self, server: TunnelServer) -> bool:
        with (
            socket.create_connection(server.address, timeout=20) as tcp,
            self._context.wrap_socket(tcp, server_hostname=NAME, session=self._session) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: tunnel.test\r\nConnection: close\r\n\r\n")
            while tls.recv(65536):
                pass
            self._session = tls.session
            return bool(tls.session_reused)


def serve(authority: Authority, keys: Path | None) -> TunnelServer:
    issued = authority.issue(NAME)
    return TunnelServer(
        ServerConfig.build(
            listen="127.0.0.1:0",
            cert=issued.chain,
            key=issued.key,
            token="t",
            ticket_keys=keys,
        )
    )


def test_a_client_resumes_at_the_other_of_two_servers_and_after_a_rotation(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ech_workers.server")
    keys = tmp_path / "keys"
    keys.mkdir()
    write(keys, "1.key", os.urandom(KEY_LENGTH), 1_000)
    client = Client(authority)
    with ExitStack() as stack:
        one, two = (stack.enter_context(serve(authority, keys)) for _ in range(2))
        alone = stack.enter_context(serve(authority, None))
        assert not client.resumes_at(one)
        assert client.resumes_at(two)
        assert client.resumes_at(one)

        write(keys, "2.key", os.urandom(KEY_LENGTH), 2_000)
        wait_until(lambda: caplog.text.count("now under 2.key, 1.key") == 2, "both servers to see the new key", 20)
        assert client.resumes_at(two), "a ticket under the old key"
        (keys / "1.key").unlink()
        wait_until(lambda: caplog.text.count("now under 2.key\n") == 2, "both servers to see the old key go", 20)
        assert client.resumes_at(one), "a ticket under the new key"

        assert not client.resumes_at(alone), "a server that does not share the keys"
