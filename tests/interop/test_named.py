"""Look-ups at a real resolver: BIND speaks DNS over HTTPS by HTTP/2 alone."""

import socket
from pathlib import Path

import pytest

from harness.curl import fetch
from harness.processes import Processes
from harness.requirements import program
from harness.targets import pattern
from harness.tunnel import RESOLVER_NAME, Site

CONFIGURATION = """
tls secured {{ cert-file "{chain}"; key-file "{key}"; }};
http queries {{ endpoints {{ "/dns-query"; }}; }};
options {{
    directory "{folder}";
    pid-file none; session-keyfile none; lock-file none;
    recursion no; notify no; dnssec-validation no;
    listen-on-v6 {{ none; }};
    listen-on port {plain} {{ 127.0.0.1; }};
    listen-on port {port} tls secured http queries {{ 127.0.0.1; }};
}};
controls {{ }};
zone "ech-workers.test" {{ type primary; file "zone"; }};
"""

ZONE = """
$TTL 300
@ SOA ns.ech-workers.test. admin.ech-workers.test. 1 3600 600 86400 300
@ NS ns
ns A 127.0.0.1
hidden A 127.0.0.1
_{port}._https.hidden HTTPS 1 hidden alpn="h2,http/1.1" ech="{ech}"
"""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago: named cannot be asked for a free one and say which."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_configuration_comes_from_bind(
    site: Site, processes: Processes, targets: dict[str, int], tmp_path: Path, mode: str
) -> None:
    named = program("named", "bind9")
    server = site.server(publish=False)
    certificate = site.authority.issue(RESOLVER_NAME)
    plain, port = free_ports(2)
    (tmp_path / "zone").write_text(ZONE.format(port=server.port, ech=site.key.base64))
    configuration = tmp_path / "named.conf"
    configuration.write_text(
        CONFIGURATION.format(chain=certificate.chain, key=certificate.key, folder=tmp_path, plain=plain, port=port)
    )
    resolver = processes.start(named, "-g", "-n", "1", "-c", configuration)
    resolver.wait_line(r"\brunning\b")
    url = f"https://{RESOLVER_NAME}:{port}/dns-query"
    proxy = site.proxy(server.port, mode, "--doh-server", url, "--doh-ip", "127.0.0.1", resolver=False)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    assert site.resolver.questions == []
