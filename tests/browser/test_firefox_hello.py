"""The profile firefox-153 against a real Firefox on the same machine: both ClientHellos field by field, the upgrade's and the DNS query's header fields in their order."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import dns.message
import pytest

from ech_workers import _native, doh
from harness.client_hello import ENCRYPTED_CLIENT_HELLO, PRE_SHARED_KEY, SESSION_TICKET, Hello, client_hellos
from harness.firefox import Firefox
from harness.processes import Processes
from harness.recorder import Frame, Page, Recorded, Recorder, head_fields
from harness.tap import Tap
from harness.tunnel import RESOLVER_NAME, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.authority import Authority

PROFILE = "firefox-153"
VERSION = int(PROFILE.partition("-")[2])
PAGE_NAME = "page.ech-workers.test"
# Cold, on a busy machine.
BROWSER_TIMEOUT = 60.0
# HTTP/2 frame types and flags (RFC 9113 section 6).
DATA, HEADERS, SETTINGS_ACKNOWLEDGED, END_STREAM = 0, 1, (4, 1), 1
WITHOUT_TICKETS, WITH_TICKETS = 0, 2
# A WebSocket as soon as the page is there, and the next ones when it has failed; the recorder refuses them all.
SCRIPT = """<!doctype html><title>page</title><script>
let count = 0
function open() {
    const socket = new WebSocket(`wss://${location.host}/ws`, ["%s"])
    socket.onclose = () => { if (++count < 3) open() }
}
open()
</script>"""


@dataclass
class Captured:
    """What a browser sent of its own: the page's connection, then a WebSocket's."""

    page: Recorded
    websockets: list[Recorded]
    port: int


@pytest.fixture(scope="module")
def browser(authority: Authority) -> Iterator[Firefox]:
    processes = Processes()
    firefox = Firefox(processes, authority.path)
    if firefox.major_version != VERSION:
        pytest.skip(f"Firefox {firefox.major_version} is installed, the profile is of {VERSION}")
    yield firefox
    processes.stop()


@pytest.fixture(scope="module")
def captured(browser: Firefox, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return capture(browser, authority, tmp_path_factory.mktemp("firefox"), WITHOUT_TICKETS)


@pytest.fixture(scope="module")
def captured_with_tickets(browser: Firefox, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return capture(browser, authority, tmp_path_factory.mktemp("firefox"), WITH_TICKETS)


def capture(browser: Firefox, authority: Authority, folder: Path, tickets: int) -> Captured:
    """A server that chooses h2 without RFC 8441, as CDNs do."""

    def page(path: str, body: bytes) -> Page:
        return "text/html", (SCRIPT % TOKEN).encode()

    with Recorder(authority.issue(PAGE_NAME), alpn=("h2", "http/1.1"), page=page, tickets=tickets) as server:
        running = browser.open(
            folder / "profile",
            f"https://{PAGE_NAME}:{server.port}/",
            {"network.dns.localDomains": PAGE_NAME},
        )
        wait_until(lambda: len(server.heads) >= 3, "the browser's WebSockets", BROWSER_TIMEOUT)
        running.stop()
        h2 = [connection for connection in server.connections if connection.alpn == "h2"]
        http1 = [connection for connection in server.connections if connection.heads]
        return Captured(h2[0], http1, server.port)


def ours(site: Site, tickets: int, *options: str) -> list[Recorded]:
    """What our client sends, with ECH, to a server that knows nothing of ECH; and without."""
    with Recorder(
        site.inner, alpn=("h2", "http/1.1"), page=lambda path, body: ("text/html", b""), tickets=tickets
    ) as server:
        site.publish(server.port, None)
        proxy = site.proxy(server.port, "--no-ech", "--profile", PROFILE, *options, wait=False)
        wait_until(lambda: len(server.heads) >= 2, "two dials", 30)
        proxy.process.stop()
        # The first contact is left as soon as h2 is chosen, and the last connection may be younger than the answer to the one before.
        return [server.connections[0], *(connection for connection in server.connections[1:] if connection.heads)]


def hello(recorded: Recorded) -> Hello:
    return Hello.parse(recorded.hello)


def without_ech(real: Hello) -> Hello:
    """A browser that knows no configuration sends GREASE; this client sends ECH that is real, or none."""
    extensions = tuple(entry for entry in real.extensions if entry[0] != ENCRYPTED_CLIENT_HELLO)
    return Hello(
        real.record_version, real.version, real.session_id, real.cipher_suites, real.compression_methods, extensions
    )


def test_hellos_equal_the_browsers(captured: Captured, site: Site) -> None:
    """Values and order of all fields, for the first contact and for WebSockets."""
    first, *websockets = ours(site, WITHOUT_TICKETS)
    assert hello(first) == without_ech(hello(captured.page))
    assert hello(captured.page).one_x25519_key
    for real in captured.websockets:
        assert SESSION_TICKET in hello(real).numbers
        for own in websockets:
            assert hello(own) == without_ech(hello(real))


def test_hellos_with_a_ticket_equal_the_browsers(captured_with_tickets: Captured, site: Site) -> None:
    first, *_, last = ours(site, WITH_TICKETS)
    assert hello(first) == without_ech(hello(captured_with_tickets.page))
    for real in captured_with_tickets.websockets:
        assert real.resumed
        assert SESSION_TICKET not in hello(real).numbers
        assert hello(real).numbers[-1] == PRE_SHARED_KEY
        assert hello(last) == without_ech(hello(real))
    assert last.resumed


@pytest.mark.parametrize("form", ["first-contact", "websocket"])
def test_hello_with_ech_equals_the_browsers_with_grease(captured: Captured, site: Site, form: str) -> None:
    """Real ECH stands where GREASE stood, in the same outer form; the cipher that GREASE names is random."""
    with Recorder(site.outer, alpn=("h2", "http/1.1"), page=lambda path, body: ("text/html", b"")) as server:
        site.publish(server.port, site.key.base64)
        alpn = "auto" if form == "first-contact" else "http/1.1"
        site.proxy(server.port, "--profile", PROFILE, "--alpn", alpn, wait=False)
        wait_until(lambda: bool(server.connections), "a dial")
        own = hello(server.connections[0])
    real = hello(captured.page if form == "first-contact" else captured.websockets[0])
    assert own.numbers == real.numbers
    assert without_ech(own) == without_ech(real)
    for each in (own, real):
        assert dict(each.extensions)[ENCRYPTED_CLIENT_HELLO] in [(0, 1, aead, 32) for aead in (1, 3)]


def test_resumption_hello_with_ech_equals_the_browsers_with_grease(captured_with_tickets: Captured, site: Site) -> None:
    """On the outside, too, no session_ticket, and pre_shared_key last: a placeholder, by which nothing can be resumed."""
    server = site.server(publish=False)
    with Tap(("127.0.0.1", server.port)) as tap:
        site.publish(tap.port, site.key.base64)
        proxy = site.proxy(tap.port, "--profile", PROFILE, "--alpn", "http/1.1")
        before = len(proxy.process.lines)
        tap.break_connections()
        proxy.wait_session(after=before)
        (sent,) = client_hellos(bytes(tap.sent[-1]))
    own, real = Hello.parse(sent), hello(captured_with_tickets.websockets[-1])
    assert own.numbers == real.numbers
    assert own.numbers[-2:] == [ENCRYPTED_CLIENT_HELLO, PRE_SHARED_KEY]
    # The servers chose other cipher suites, and so tickets have binders of other lengths.
    assert [entry for entry in without_ech(own).extensions if entry[0] != PRE_SHARED_KEY] == [
        entry for entry in without_ech(real).extensions if entry[0] != PRE_SHARED_KEY
    ]
    assert dict(own.extensions)[PRE_SHARED_KEY] == (("ticket",), (32,))


def test_fingerprints_equal_the_browsers(captured: Captured, site: Site) -> None:
    from ech_workers.fingerprint import ClientHello

    with Recorder(site.outer, alpn=("h2", "http/1.1"), page=lambda path, body: ("text/html", b"")) as server:
        site.publish(server.port, site.key.base64)
        site.proxy(server.port, "--profile", PROFILE, wait=False)
        wait_until(lambda: bool(server.connections), "a dial")
        own = ClientHello.parse(server.connections[0].hello)
    real = ClientHello.parse(captured.page.hello)
    assert (own.ja3, own.ja4) == (real.ja3, real.ja4)


def test_upgrade_equals_the_browsers(captured: Captured, site: Site) -> None:
    """In all but what is not offered: permessage-deflate, which servers might accept."""
    _, own, *_ = ours(site, WITHOUT_TICKETS)
    real = head_fields(captured.websockets[0].heads[0])
    assert ("Sec-WebSocket-Extensions", "permessage-deflate") in real
    own_fields = head_fields(own.heads[0])
    host, real_host = dict(own_fields)["Host"], f"{PAGE_NAME}:{captured.port}"
    assert [
        (name, "key" if name == "Sec-WebSocket-Key" else value.replace(host, "host")) for name, value in own_fields
    ] == [
        (name, "key" if name == "Sec-WebSocket-Key" else value.replace(real_host, "host"))
        for name, value in real
        if name != "Sec-WebSocket-Extensions"
    ]


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_dns_query_equals_the_browsers(
    browser: Firefox, authority: Authority, tmp_path: Path, method: Literal["GET", "POST"], alpn: str
) -> None:
    """Over HTTP/1.1 the fields, their values and order; over HTTP/2 all of it."""

    def page(path: str, body: bytes) -> Page:
        text = path.partition("dns=")[2]
        answer = dns.message.make_response(
            dns.message.from_wire(body or base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        )
        return "application/dns-message", answer.to_wire()

    with Recorder(authority.issue(RESOLVER_NAME), alpn=(alpn,), page=page) as resolver:
        url = f"https://{RESOLVER_NAME}:{resolver.port}/dns-query"
        running = browser.open(
            tmp_path / "profile",
            f"https://{SERVER_NAME}/",
            {
                "network.trr.mode": 3,
                "network.trr.uri": url,
                "network.trr.bootstrapAddr": "127.0.0.1",
                "network.trr.useGET": method == "GET",
            },
        )
        wait_until(lambda: bool(resolver.requests or resolver.heads), "the browser's query", BROWSER_TIMEOUT)
        running.stop()
        real = next(connection for connection in resolver.connections if connection.requests or connection.heads)
        before = len(resolver.connections)
        engine = _native.Engine(_native.EngineConfiguration(ca_pem=[authority.path.read_bytes()], system_roots=False))
        query_path, body = doh.request("/dns-query", doh.query(question_of(real)), method)
        engine.fetch(
            _native.FetchPlan(
                server_name=RESOLVER_NAME,
                port=resolver.port,
                addresses=["127.0.0.1"],
                path=query_path,
                method=method,
                body=body,
                profile=PROFILE,
            )
        )
        assert isinstance(engine.next_event(20), _native.Fetched)
        engine.close()
        (own,) = resolver.connections[before:]
    assert without_ech(hello(own)) == without_ech(hello(real))
    if alpn == "h2":
        # To the byte, and in the same TLS records.
        assert opening(own) == opening(real)
        assert own.records[: len(opening(own)) - 1] == real.records[: len(opening(own)) - 1]
    else:
        assert [fields_of(own.heads[0]), len(own.heads)] == [fields_of(real.heads[0]), 1]


def question_of(recorded: Recorded) -> doh.Question:
    """What a browser asked over HTTP/2; over HTTP/1.1 it does not matter."""
    if not recorded.requests:
        return doh.Question("a.test", "HTTPS")
    text = dict(recorded.requests[0])[":path"].partition("dns=")[2]
    body = next((frame.payload for frame in recorded.frames if frame.kind == DATA), b"")
    asked = dns.message.from_wire(body or base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))).question[0]
    kinds: dict[int, doh.Type] = {1: "A", 28: "AAAA", 65: "HTTPS"}
    return doh.Question(asked.name.to_text(omit_final_dot=True), kinds[asked.rdtype])


def opening(recorded: Recorded) -> list[Frame]:
    """All frames up to the request's end. When a peer acknowledges our settings is chance."""
    found = []
    for frame in recorded.frames:
        if (frame.kind, frame.flags) != SETTINGS_ACKNOWLEDGED:
            found.append(frame)
        if frame.kind in (HEADERS, DATA) and frame.flags & END_STREAM:
            break
    return found


def fields_of(head: bytes) -> list[tuple[str, str]]:
    """Without the query's length, which is its own."""
    return [(name, "" if name == "Content-Length" else value) for name, value in head_fields(head)]
