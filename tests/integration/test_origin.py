"""HTTPS records that lead elsewhere than to the origin itself: another port, several endpoints."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest

from ech_workers import _native
from harness.ports import unused_port
from harness.tunnel import SERVER_NAME

if TYPE_CHECKING:
    from harness.authority import Authority
    from harness.tunnel import Site


@pytest.mark.parametrize(
    ("origin", "host"),
    [(443, SERVER_NAME), (8443, f"{SERVER_NAME}:8443")],
)
def test_the_host_keeps_the_origins_port(authority: Authority, origin: int, host: str) -> None:
    issued = authority.issue(SERVER_NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.key)
    heads: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as stream:
            heads.append(stream.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        engine = _native.Engine(_native.EngineConfiguration(ca_pem=[authority.path.read_bytes()], system_roots=False))
        engine.dial(
            _native.DialPlan(
                server_name=SERVER_NAME,
                port=listener.getsockname()[1],
                authority_port=origin,
                path="/ws",
                token="t",
                addresses=["127.0.0.1"],
                ech=None,
            )
        )
        thread.join(10)
        engine.close()
    fields = dict(line.split(": ", 1) for line in heads[0].decode().split("\r\n")[1:] if line)
    assert fields["Host"] == host


def test_the_endpoint_of_the_next_priority_is_dialed_when_the_first_is_down(site: Site) -> None:
    server = site.server(publish=False)
    closed = unused_port()
    site.resolver.add("down.test", "A", "127.0.0.1")
    site.resolver.add(SERVER_NAME, "A", "127.0.0.1")
    ech = site.key.base64
    site.resolver.add(
        f"_8450._https.{SERVER_NAME}",
        "HTTPS",
        f"1 down.test. port={closed} ech={ech}",
        f"2 {SERVER_NAME}. port={server.port} ech={ech}",
    )
    proxy = site.proxy(8450)
    assert re.search(f"session up.* 127.0.0.1:{server.port}", proxy.process.output)
