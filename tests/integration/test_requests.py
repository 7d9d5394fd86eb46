"""What a resolver and a server read of our requests: the profile's header fields, in the browser's order and spelling."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Literal

import pytest

from ech_workers import _native, doh
from harness.recorder import Recorder, head_fields
from harness.tunnel import RESOLVER_NAME, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    from harness.authority import Authority

PROFILES = ["firefox-120", "firefox-153"]
ALPN = ["h2", "http/1.1"]
# HTTP/2 frames before a request: SETTINGS (4), WINDOW_UPDATE (8) and PRIORITY (2).
OPENING = {
    "firefox-120": [
        (4, 0, "000100010000000400020000000500004000"),
        (8, 0, "00bf0001"),
        (2, 3, "00000000c8"),
        (2, 5, "0000000064"),
        (2, 7, "0000000000"),
        (2, 9, "0000000700"),
        (2, 11, "0000000300"),
        (2, 13, "00000000f0"),
    ],
    "firefox-153": [(4, 0, "000100010000000200000000000400020000000500004000"), (8, 0, "00bf0001")],
}
# The request's stream and priority.
STREAM = {"firefox-120": (15, "0000000715"), "firefox-153": (3, "0000000015")}
QUERY = doh.query(doh.Question("a.test", "HTTPS"))
FIELDS = {
    "GET": [
        ("accept", "application/dns-message"),
        ("accept-encoding", ""),
        ("pragma", "no-cache"),
        ("cache-control", "no-cache"),
        ("te", "trailers"),
    ],
    "POST": [
        ("accept", "application/dns-message"),
        ("accept-encoding", ""),
        ("content-type", "application/dns-message"),
        ("content-length", str(len(QUERY))),
        ("cache-control", "no-store, no-cache"),
        ("pragma", "no-cache"),
        ("te", "trailers"),
    ],
}


def ask(
    authority: Authority, recorder: Recorder, method: Literal["GET", "POST"], profile: str
) -> _native.Fetched | _native.FetchFailed:
    engine = _native.Engine(_native.EngineConfiguration(ca_pem=[authority.path.read_bytes()], system_roots=False))
    path, body = doh.request("/dns-query", QUERY, method)
    engine.fetch(
        _native.FetchPlan(
            server_name=RESOLVER_NAME,
            port=recorder.port,
            addresses=["127.0.0.1"],
            path=path,
            method=method,
            body=body,
            profile=profile,
        )
    )
    while not isinstance(event := engine.next_event(10), _native.Fetched | _native.FetchFailed):
        assert event is not None
    engine.close()
    return event


def recorder(authority: Authority, alpn: str, answer: bytes = b"answer") -> Recorder:
    return Recorder(
        authority.issue(RESOLVER_NAME), alpn=(alpn,), page=lambda path, body: ("application/dns-message", answer)
    )


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_query_over_http2_is_the_browsers(authority: Authority, method: Literal["GET", "POST"], profile: str) -> None:
    with recorder(authority, "h2") as resolver:
        fetched = ask(authority, resolver, method, profile)
        assert isinstance(fetched, _native.Fetched), fetched
        assert (fetched.status, fetched.http_version, fetched.body) == (200, "h2", b"answer")
        (connection,) = resolver.connections
        (request,) = connection.requests
        path = "/dns-query" if method == "POST" else "/dns-query?dns=" + encoded(QUERY)
        assert request[:4] == [
            (":method", method),
            (":path", path),
            (":authority", f"{RESOLVER_NAME}:{resolver.port}"),
            (":scheme", "https"),
        ]
        assert request[4:] == FIELDS[method]
        frames = connection.frames[: len(OPENING[profile]) + 1]
        assert [(frame.kind, frame.stream, frame.payload.hex()) for frame in frames[:-1]] == OPENING[profile]
        stream, priority = STREAM[profile]
        assert (frames[-1].kind, frames[-1].stream, frames[-1].payload[:5].hex()) == (1, stream, priority)
        # END_STREAM, END_HEADERS, PRIORITY (RFC 9113 section 6.2).
        assert frames[-1].flags == (0x25 if method == "GET" else 0x24)
        # A TLS record for the opening, one for the header fields, one for the body.
        assert len(QUERY) + 9 in connection.records[2:3] or method == "GET"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_query_over_http1_is_the_browsers(authority: Authority, method: Literal["GET", "POST"], profile: str) -> None:
    with recorder(authority, "http/1.1") as resolver:
        fetched = ask(authority, resolver, method, profile)
        assert isinstance(fetched, _native.Fetched), fetched
        assert (fetched.status, fetched.http_version, fetched.body) == (200, "http/1.1", b"answer")
        host = f"{RESOLVER_NAME}:{resolver.port}"
        assert resolver.heads == [
            {
                "GET": f"GET /dns-query?dns={encoded(QUERY)} HTTP/1.1\r\nHost: {host}\r\nAccept: application/dns-message\r\n"
                "Accept-Encoding: \r\nConnection: keep-alive\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\r\n",
                "POST": f"POST /dns-query HTTP/1.1\r\nHost: {host}\r\nAccept: application/dns-message\r\n"
                f"Accept-Encoding: \r\nContent-Type: application/dns-message\r\nContent-Length: {len(QUERY)}\r\n"
                "Cache-Control: no-store, no-cache\r\nConnection: keep-alive\r\nPragma: no-cache\r\n\r\n",
            }[method].encode()
        ]


@pytest.mark.parametrize("alpn", ALPN)
def test_answer_that_never_ends_is_cut(authority: Authority, alpn: str) -> None:
    with recorder(authority, alpn, bytes(65537)) as resolver:
        failed = ask(authority, resolver, "GET", "firefox-120")
        assert isinstance(failed, _native.FetchFailed)
        assert failed.failure.code == "http-too-large"


@pytest.mark.parametrize("alpn", ALPN)
def test_answer_of_the_largest_size_is_whole(authority: Authority, alpn: str) -> None:
    with recorder(authority, alpn, bytes(65536)) as resolver:
        fetched = ask(authority, resolver, "POST", "firefox-120")
        assert isinstance(fetched, _native.Fetched)
        assert fetched.body == bytes(65536)


@pytest.mark.parametrize(
    ("profile", "version", "language", "encoding", "connection"),
    [
        ("firefox-120", "120.0", "en-US,en;q=0.5", "gzip, deflate, br", "keep-alive, Upgrade"),
        ("firefox-153", "153.0", "en-US,en;q=0.9", "gzip, deflate, br, zstd", "Upgrade"),
    ],
)
def test_upgrade_is_the_browsers(
    site: Site, profile: str, version: str, language: str, encoding: str, connection: str
) -> None:
    """But for permessage-deflate, which a browser offers and this client cannot do."""
    with Recorder(site.inner, alpn=("http/1.1",), page=lambda path, body: ("text/html", b"")) as server:
        site.publish(server.port, None)
        site.proxy(server.port, "--no-ech", "--profile", profile, wait=False)
        wait_until(lambda: bool(server.heads), "the upgrade")
        head = server.heads[0]
        assert head.startswith(b"GET /ws HTTP/1.1\r\n")
        fields = head_fields(head)
        key = dict(fields)["Sec-WebSocket-Key"]
        assert len(base64.b64decode(key, validate=True)) == 16
        assert fields == [
            ("Host", f"{SERVER_NAME}:{server.port}"),
            ("User-Agent", f"Mozilla/5.0 (X11; Linux x86_64; rv:{version}) Gecko/20100101 Firefox/{version}"),
            ("Accept", "*/*"),
            ("Accept-Language", language),
            ("Accept-Encoding", encoding),
            ("Sec-WebSocket-Version", "13"),
            ("Origin", f"https://{SERVER_NAME}:{server.port}"),
            ("Sec-WebSocket-Protocol", TOKEN),
            ("Sec-WebSocket-Key", key),
            ("Connection", connection),
            ("Sec-Fetch-Dest", "empty"),
            ("Sec-Fetch-Mode", "websocket"),
            ("Sec-Fetch-Site", "same-origin"),
            ("Pragma", "no-cache"),
            ("Cache-Control", "no-cache"),
            ("Upgrade", "websocket"),
        ]


def encoded(message: bytes) -> str:
    return base64.urlsafe_b64encode(message).rstrip(b"=").decode()
