"""Every Python example in README and docs runs, as it stands in the text, against real servers."""

import asyncio
import json
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from harness.authority import Authority
from harness.examples import examples
from harness.processes import Processes
from harness.tunnel import TOKEN, Site

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PAGES = sorted(
    page.relative_to(ROOT)
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if "```python" in page.read_text()
)
SERVER = "tunnel.example"
# This one is told by a server that goes on for ever.
FEED = Path("docs/reference/status.md")


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"hello")

    do_HEAD = do_GET  # noqa: N815 (http.server names it)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Ssh(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@pytest.fixture(scope="module")
def targets_of_examples(authority: Authority) -> Iterator[dict[str, int]]:
    """example.org and example.net by http and https, and ssh.example."""
    certificate = authority.issue("example.org", "example.net", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Pages) for _ in range(2)]
    servers[1].socket = context.wrap_socket(servers[1].socket, server_side=True, do_handshake_on_connect=False)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    listening = threading.Event()
    stop = asyncio.Event()

    async def serve_ssh() -> None:
        async def handle(process: Any) -> None:
            process.exit(0)

        key = asyncssh.generate_private_key("ssh-ed25519")
        ssh = await asyncssh.create_server(_Ssh, "127.0.0.1", 0, server_host_keys=[key], process_factory=handle)
        ready.append(ssh.sockets[0].getsockname()[1])
        listening.set()
        await stop.wait()
        ssh.close()
        await ssh.wait_closed()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve_ssh()), daemon=True)
    thread.start()
    assert listening.wait(20)
    http, https = (server.server_port for server in servers)
    yield {
        "example.org:80": http,
        "example.org:443": https,
        "example.net:443": https,
        "ssh.example:22": ready[0],
    }
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("page", [page for page in PAGES if page != FEED], ids=str)
def test_examples_run(
    site: Site, processes: Processes, targets_of_examples: dict[str, int], page: Path, tmp_path: Path
) -> None:
    inner = site.authority.issue(SERVER)
    server = site.server(certificate=inner, publish=False)
    for name in (SERVER, "cloudflare-ech.com"):
        site.resolver.add(name, "A", "127.0.0.1")
    site.resolver.add_https(SERVER, server.port, site.key.base64)
    site.resolver.add_https("cloudflare-ech.com", 443, site.key.base64)
    certificate = site.authority.issue("localhost")
    work = tmp_path / "work"
    work.mkdir()
    for name, file in (
        ("server.pem", certificate.chain),
        ("server.key", certificate.key),
        ("ca.pem", site.authority.path),
    ):
        (work / name).write_bytes(file.read_bytes())
    world = {
        "server": f"{SERVER}:{server.port}/ws",
        "token": TOKEN,
        "doh_server": site.resolver.url,
        "doh_ip": "127.0.0.1",
        "ca_file": str(site.authority.path),
        "cache_dir": "",
        "targets": targets_of_examples,
        "replaced": {},
    }
    if "https" in page.read_text():
        # By a local port the server itself looks the name up, and it has no example.org here.
        https = targets_of_examples["example.org:443"]
        world["replaced"] = {
            'httpx.Client(proxy=f"http://{listener.host}:{listener.port}") as client:\n        print(client.get("https://example.org/")': (
                'httpx.Client(proxy=f"http://{listener.host}:{listener.port}") as client:\n'
                f'        print(client.get("https://localhost:{https}/")'
            )
        }
        text = (ROOT / page).read_text()
        assert all(before in text for before in world["replaced"]) or page.name != "python.md"
    program = processes.start(
        *(sys.executable, "-W", "error::ResourceWarning", "-m", "harness.examples", ROOT / page, json.dumps(world)),
        env={
            "PYTHONPATH": str(TESTS),
            "SSL_CERT_FILE": str(site.authority.path),
            "REQUESTS_CA_BUNDLE": str(site.authority.path),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), ""),
        },
        cwd=work,
    )
    assert program.wait(90) == 0, program.output
    ran = re.findall(r"^ran ", program.output, re.MULTILINE)
    assert len(ran) == len(examples(ROOT / page)) > 0
    assert "Traceback" not in program.output


def test_the_feed_can_be_read_as_the_page_says(site: Site, processes: Processes) -> None:
    server = site.server()
    proxy = site.proxy(server.port, "--status-listen", "127.0.0.1:0")
    port = proxy.process.wait_line(r"http://127\.0\.0\.1:(\d+)/").group(1)
    world = {"targets": {}, "replaced": {"9090": port}}
    program = processes.start(
        *(sys.executable, "-m", "harness.examples", ROOT / FEED, json.dumps(world)),
        env={"PYTHONPATH": str(TESTS), "PYTHONUNBUFFERED": "1"},
    )
    program.wait_line(r"^up \d+$")
