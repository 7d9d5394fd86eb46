"""Peers that announce a record size limit (RFC 8449) while bulk flows. A limit below 16 KiB once made a driver panic."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from typing import TYPE_CHECKING, Literal

import pytest

from harness import socks
from harness.name_server import MAY_MOUNT, NameServer
from harness.small_records import SmallRecords, needs_tlslite
from harness.targets import pattern, pattern_sha256
from harness.waiting import wait_until

if TYPE_CHECKING:
    from harness.tunnel import ProxyProgram, Site

# The least, the two between which the header of a client's full message grows, a quarter of the largest, and the largest two.
LIMITS = (64, 65, 134, 135, 257, 4096, 16_384, 16_385)
# tlslite-ng is written in Python: it carries some hundred KB/s, and less in small records.
SIZE = 150_001


def download(proxy: ProxyProgram, port: int) -> None:
    with socks.connect(proxy.address, "127.0.0.1", port, timeout=60) as connection:
        connection.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % SIZE)
        body = socks.until_end(connection).partition(b"\r\n\r\n")[2]
    assert (len(body), hashlib.sha256(body).hexdigest()) == (SIZE, pattern_sha256(SIZE))


def upload(proxy: ProxyProgram, port: int) -> None:
    with socks.connect(proxy.address, "127.0.0.1", port, timeout=60) as connection:
        connection.sendall(b"".join(pattern(SIZE)))
        connection.shutdown(socket.SHUT_WR)
        assert json.loads(socks.until_end(connection)) == {"bytes": SIZE, "sha256": pattern_sha256(SIZE)}


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
@pytest.mark.parametrize("limit", [64, 134, 16_385])
def test_a_ping_is_answered_whether_or_not_the_answer_fits_a_record(
    site: Site, targets: dict[str, int], limit: int, mode: str
) -> None:
    """The thread that answers has its time for others."""
    needs_tlslite()
    server = site.server()
    with SmallRecords(site, server.port, "client", limit) as path:
        proxy = site.proxy(path.port, mode, "--no-ech", "--sessions", "1", "--server-ip", "127.0.0.1", "--control", "")
        with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as connection:
            for number in range(20):
                said = b"%d" % number
                connection.sendall(said)
                assert socks.exactly(connection, len(said)) == said
                # A ping with the longest payload, as the server would send it.
                path.to_client(b"\x89\x7d" + os.urandom(125))
        assert path.failures == []
        assert "lost" not in proxy.process.output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
@pytest.mark.parametrize("towards", ["server", "client"])
def test_a_record_size_limit_of_the_peer_kills_nothing(
    site: Site, targets: dict[str, int], towards: Literal["server", "client"], mode: str
) -> None:
    """Every byte arrives both ways, no driver dies, and the sessions are counted right during and after it."""
    needs_tlslite()
    server, sessions = site.counted_server()
    for limit in LIMITS:
        with SmallRecords(site, server.port, towards, limit) as path:
            proxy = site.proxy(
                path.port, mode, "--no-ech", "--sessions", "1", "--server-ip", "127.0.0.1", "--control", ""
            )
            download(proxy, targets["http"])
            upload(proxy, targets["digest"])
            if mode == "--yamux":
                assert sessions() == 1, limit
            assert "session lost" not in proxy.process.output, proxy.process.output
            assert path.failures == [], (limit, path.failures)
            proxy.process.stop()
            wait_until(lambda: sessions() == 0, "the session has ended", 20)
        assert "panic" not in proxy.process.output
    assert "panic" not in server.process.output
    assert server.process.running


@MAY_MOUNT
def test_a_text_of_simple_mode_is_whole_however_small_the_records_are(site: Site, targets: dict[str, int]) -> None:
    """The client asks for a target with a name of 243 bytes in records of 64."""
    needs_tlslite()
    known, unknown = (".".join([letter * 60] * 4) for letter in "ku")
    with NameServer(site.folder, {}, f"127.0.0.1 {known}\n") as names:
        server = site.server(prefix=names.prefix)
        with SmallRecords(site, server.port, "client", 64) as path:
            options = ("--no-yamux", "--reply", "confirmed", "--log-level", "debug")
            proxy = site.proxy(path.port, *options, "--no-ech", "--server-ip", "127.0.0.1", "--control", "")
            with socks.connect(proxy.address, known, targets["echo"], timeout=60) as connection:
                connection.sendall(b"there and back")
                assert socks.exactly(connection, 14) == b"there and back"
            with pytest.raises(socks.ReplyError) as refused:
                socks.connect(proxy.address, unknown, targets["echo"], timeout=60)
            # Host unreachable: the server has read the name, and knows none like it.
            assert refused.value.reply == 4
            proxy.process.wait_line(f"{unknown}:{targets['echo']}: ")
            assert path.failures == []
