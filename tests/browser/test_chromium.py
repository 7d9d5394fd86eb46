"""A real browser loads a page through the tunnel: many resources at a time, a script's own requests both ways, a WebSocket; by SOCKS5 and by HTTP."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from typing import TYPE_CHECKING

import pytest
from websockets.sync import server as websocket_server

from harness.chromium import open_page
from harness.targets import pattern_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from websockets.sync.server import ServerConnection

    from harness.processes import Processes
    from harness.tunnel import Site

IMAGES = 24
DOWNLOAD = 3_000_001
UPLOAD = 1_000_003
MESSAGE = 100_003
# Cold, on a busy machine.
BROWSER_TIMEOUT = 60.0
# A picture of one pixel, told apart by what is in its comment.
GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xfe\x04%04d\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
PAGE = """<!doctype html><meta charset="utf-8"><title>page</title>
<link rel="stylesheet" href="style.css"><script src="script.js"></script>
%(images)s
<script>
const hex = async data => [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))]
    .map(byte => byte.toString(16).padStart(2, "0")).join("")
const answer = (socket, message) => new Promise(resolve => {
    socket.onmessage = event => resolve(event.data)
    socket.send(message)
})
window.onload = () => {
    const socket = new WebSocket(`ws://localhost:%(port)d/`)
    socket.onopen = async () => {
        const said = {}
        try {
            said.images = [...document.images].filter(image => image.complete && image.naturalWidth == 1).length
            said.style = getComputedStyle(document.body).color
            said.script = window.fromScript
            const down = await (await fetch("/bytes/%(download)d")).arrayBuffer()
            said.down = [down.byteLength, await hex(down)]
            const up = await fetch("/sink", {method: "POST", body: new Uint8Array(%(upload)d).fill(7)})
            said.up = await up.json()
            said.echo = (await answer(socket, "x".repeat(%(message)d))).length
        } catch (error) {
            said.error = String(error)
        }
        socket.send(JSON.stringify(said))
    }
}
</script>"""


class Listener:
    """A WebSocket server that sends back what it gets, and keeps what a page reports."""

    def __init__(self) -> None:
        self.reports: queue.Queue[str] = queue.Queue()
        self._server = websocket_server.serve(self._serve, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def _serve(self, connection: ServerConnection) -> None:
        for message in connection:
            if isinstance(message, str) and message.startswith("{"):
                self.reports.put(message)
            else:
                connection.send(message)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.stop()


@pytest.fixture
def page(files: Path, listener: Listener) -> None:
    (files / "style.css").write_text("body { color: rgb(1, 2, 3) }")
    (files / "script.js").write_text("window.fromScript = 'ran'")
    for number in range(IMAGES):
        (files / f"{number}.gif").write_bytes(GIF.replace(b"%04d", b"%04d" % number))
    images = "\n".join(f'<img src="{number}.gif">' for number in range(IMAGES))
    values = {"images": images, "download": DOWNLOAD, "upload": UPLOAD, "port": listener.port, "message": MESSAGE}
    (files / "page.html").write_text(PAGE % values)


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("kind", ["socks5", "http"])
@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_page_with_all_its_resources(
    site: Site, processes: Processes, targets: dict[str, int], listener: Listener, tmp_path: Path, kind: str, mode: str
) -> None:
    proxy = site.proxy(site.server().port, mode)
    # A loopback name, so that scripts may use crypto.subtle; it is the server that looks it up.
    url = f"http://localhost:{targets['http']}/files/page.html"
    browser = open_page(processes, tmp_path / "profile", f"{kind}://127.0.0.1:{proxy.port}", url)
    report = listener.reports.get(timeout=BROWSER_TIMEOUT)
    browser.stop()
    assert json.loads(report) == {
        "images": IMAGES,
        "style": "rgb(1, 2, 3)",
        "script": "ran",
        "down": [DOWNLOAD, pattern_sha256(DOWNLOAD)],
        "up": {"bytes": UPLOAD, "sha256": hashlib.sha256(b"\x07" * UPLOAD).hexdigest()},
        "echo": MESSAGE,
    }
