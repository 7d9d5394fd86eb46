"""A resolver with a JSON interface over plain HTTP, as Cloudflare and Google have one: GET ?name=NAME&type=A."""

import http.server
import json
import threading
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

# Not that of the targets, which a test may put out of the Worker's reach.
ADDRESS = "127.0.0.2"
NUMBERS = {"A": 1, "AAAA": 28}


class JsonResolver:
    """Answers from `addresses` (name to addresses); other names do not exist. `broken`: answers with 500."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.questions: list[str] = []
        self.broken = False
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self._server.server_address[1]}/dns-query"

    def answer(self, name: str, kind: str) -> dict[str, object]:
        self.questions.append(name)
        if name not in self.addresses:
            return {"Status": 3}
        found = [each for each in self.addresses[name] if (":" in each) == (kind == "AAAA")]
        return {
            "Status": 0,
            "Answer": [{"name": name, "type": NUMBERS[kind], "TTL": 60, "data": each} for each in found],
        }

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, resolver: JsonResolver) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.resolver = resolver


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        body = json.dumps(self.server.resolver.answer(asked["name"][0], asked["type"][0])).encode()
        self.send_response(500 if self.server.resolver.broken else 200)
        self.send_header("Content-Type", "application/dns-json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: `questions` has what tests ask about."""
