"""The Worker message by message, with a WebSocket client that says anything."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from harness.json_resolver import JsonResolver
from harness.ports import unused_port
from harness.targets import pattern, pattern_sha256
from harness.tunnel import TOKEN
from harness.worker import PLATFORM_ADDRESS, PRIVATE_ADDRESS, Deployment, Worker, unanswered_port
from harness.worker_client import TIMEOUT, dial, ended, said

# Of simple mode, in bytes: what a client may send at first, and what the Worker takes at a time.
FIRST_WINDOW = 256 << 10
LARGEST_WINDOW = 4 << 20


def answer(worker: Worker, first: str | bytes) -> str | bytes:
    """What the Worker says to a first message."""
    with dial(worker) as peer:
        peer.send(first)
        return said(peer)


def page(worker: Worker, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{worker.port}{path}", headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def upgrade_headers(token: str) -> dict[str, str]:
    key = base64.b64encode(b"0123456789abcdef").decode()
    names = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
    return {**names, "Sec-WebSocket-Protocol": token}


@pytest.fixture
def worker(deployment: Deployment) -> Worker:
    return deployment.start(tls=False, CONNECT_SECONDS="2")


def test_everybody_without_the_token_sees_the_same_page(deployment: Deployment) -> None:
    worker = deployment.start(tls=False)
    home, shown = page(worker)
    assert home == 200
    assert shown == next((deployment.bundle.project.directory / "src").glob("*.html")).read_bytes()
    unknown = page(worker, "/not-there")
    for path, token in (
        (worker.entry_path, "another-token"),
        (worker.entry_path, f"{TOKEN}x"),
        (worker.entry_path, TOKEN[:-1]),
        (worker.entry_path, f"{TOKEN}, chat"),
        ("/elsewhere", TOKEN),
        (f"/{TOKEN}x", "other"),
    ):
        assert page(worker, path, **upgrade_headers(token)) == unknown, (path, token)
    assert page(worker, worker.entry_path, **{"Sec-WebSocket-Protocol": TOKEN}) == unknown
    assert page(worker, worker.entry_path, "POST", **upgrade_headers(TOKEN)) == unknown


def test_without_a_secret_nobody_gets_in(deployment: Deployment) -> None:
    worker = deployment.start(tls=False, token="")
    for path, token in ((worker.entry_path, ""), ("/", ""), (worker.entry_path, TOKEN)):
        assert page(worker, path, **upgrade_headers(token))[1] == page(worker)[1]


@pytest.mark.parametrize("place", ["header", "path"])
def test_the_101_echoes_the_header_and_announces_what_is_more(worker: Worker, place: str) -> None:
    path, token = (None, TOKEN) if place == "header" else (f"/{TOKEN}", None)
    with dial(worker, path, token) as peer:
        assert peer.subprotocol == token
        assert peer.response is not None
        assert peer.response.headers["X-Stream-Extensions"] == "1, simple-open, simple-window, long-messages, worker"


def test_slashes_around_a_token_in_the_path_are_no_part_of_it(worker: Worker) -> None:
    """However many there are elsewhere: a path is as long as a stranger likes."""
    with dial(worker, f"//{TOKEN}//", None) as peer:
        assert peer.subprotocol is None
    many = "/" * 15_000
    assert page(worker, f"/x{many}x", **upgrade_headers("other")) == page(worker, "/not-there")


def test_multiplexed_mode_is_announced_where_it_is_on(deployment: Deployment) -> None:
    with dial(deployment.start(tls=False, MULTIPLEXED="on")) as peer:
        assert peer.response is not None
        words = "1, connect, half-close, simple-open, simple-window, long-messages, worker"
        assert peer.response.headers["X-Stream-Extensions"] == words


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
@pytest.mark.parametrize("size", [0, 5, 20_000_003])
def test_the_deployed_protocol_carries_both_ways(worker: Worker, targets: dict[str, int], size: int) -> None:
    with dial(worker) as peer:
        peer.send(f"CONNECT:127.0.0.1:{targets['http']}|")
        assert said(peer) == "CONNECTED"
        peer.send(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        code, heard = ended(peer)
        assert heard[-1] == "CLOSE"
        body = b"".join(piece for piece in heard if isinstance(piece, bytes)).partition(b"\r\n\r\n")[2]
        assert (code, hashlib.sha256(body).hexdigest()) == (1000, pattern_sha256(size))


def test_bytes_behind_the_bar_are_for_the_target(worker: Worker, targets: dict[str, int]) -> None:
    with dial(worker) as peer:
        peer.send(f"CONNECT:127.0.0.1:{targets['echo']}|hello")
        assert said(peer) == "CONNECTED"
        assert said(peer) == b"hello"


def test_close_ends_in_a_text_alone(worker: Worker, targets: dict[str, int]) -> None:
    with dial(worker) as peer:
        peer.send(f"CONNECT:127.0.0.1:{targets['echo']}|")
        assert said(peer) == "CONNECTED"
        peer.send(b"CLOSE")
        # Comes back in two messages: old clients take one of just these bytes for the end.
        assert (said(peer), said(peer)) == (b"CLOS", b"E")
        peer.send("CLOSE")
        assert ended(peer)[0] == 1000


def test_other_texts_are_not_for_the_target(worker: Worker, targets: dict[str, int]) -> None:
    with dial(worker) as peer:
        peer.send(f"CONNECT:127.0.0.1:{targets['echo']}|")
        assert said(peer) == "CONNECTED"
        peer.send("text after CONNECTED")
        peer.send("PING")
        assert said(peer) == "PONG"
        peer.send(b"hello")
        assert said(peer) == b"hello"


def test_a_target_that_speaks_first_is_heard(worker: Worker, targets: dict[str, int]) -> None:
    for first in ("CONNECT:127.0.0.1:{}|", "OPEN:127.0.0.1:{}"):
        with dial(worker) as peer:
            peer.send(first.format(targets["banner"]))
            assert (said(peer), said(peer)) == ("CONNECTED", b"220 ready\r\n")


def test_early_data_and_half_close_both_ways(worker: Worker, targets: dict[str, int]) -> None:
    """The target answers only after our end, and then ends: nothing is lost either way."""
    with dial(worker) as peer:
        peer.send(f"OPEN:127.0.0.1:{targets['digest']}")
        for piece in pattern(3_000_001):
            peer.send(piece)
        peer.send("FIN")
        assert said(peer) == "CONNECTED"
        code, heard = ended(peer)
        assert code == 1000
        assert heard[-1] == "FIN"
        text = b"".join(piece for piece in heard if isinstance(piece, bytes))
        assert pattern_sha256(3_000_001).encode() in text


def test_after_the_targets_end_the_client_may_go_on(worker: Worker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, dial(worker) as peer:
        listener.settimeout(TIMEOUT)
        peer.send(f"OPEN:127.0.0.1:{listener.getsockname()[1]}")
        target, _ = listener.accept()
        with target:
            target.settimeout(TIMEOUT)
            target.sendall(b"bye")
            target.shutdown(socket.SHUT_WR)
            assert [said(peer) for _ in range(3)] == ["CONNECTED", b"bye", "FIN"]
            peer.send(b"still here")
            peer.send("FIN")
            heard = b""
            while piece := target.recv(100):
                heard += piece
            assert heard == b"still here"
            assert ended(peer) == (1000, [])


def test_a_target_that_resets_is_no_clean_end(worker: Worker, targets: dict[str, int]) -> None:
    with dial(worker) as peer:
        peer.send(f"OPEN:127.0.0.1:{targets['reset']}")
        peer.send(b"hello")
        assert said(peer) == "CONNECTED"
        code, heard = ended(peer)
        assert (code, heard) == (1011, [])


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
@pytest.mark.parametrize("way", ["close", "CLOSE", "lost"])
def test_a_client_that_goes_away_ends_the_targets_connection(worker: Worker, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, dial(worker) as peer:
        listener.settimeout(TIMEOUT)
        peer.send(f"OPEN:127.0.0.1:{listener.getsockname()[1]}")
        target, _ = listener.accept()
        with target:
            target.settimeout(TIMEOUT)
            assert said(peer) == "CONNECTED"
            if way == "CLOSE":
                peer.send("CLOSE")
            elif way == "lost":
                peer.socket.shutdown(socket.SHUT_RDWR)
            else:
                peer.close()
            with contextlib.suppress(ConnectionResetError):
                assert target.recv(10) == b""


def test_an_upload_that_the_target_does_not_take_is_ended_at_its_limit(deployment: Deployment) -> None:
    """More than the kernel's buffers and the limit hold; the code says that it may be tried again later."""
    worker = deployment.start(tls=False, UPLOAD_MIB="1")
    with socket.create_server(("127.0.0.1", 0)) as listener, dial(worker) as peer:
        peer.send(f"OPEN:127.0.0.1:{listener.getsockname()[1]}")
        assert said(peer) == "CONNECTED"
        with contextlib.suppress(ConnectionClosed):
            for _ in range(64):
                peer.send(bytes(1 << 20))
        assert ended(peer)[0] == 1013


def heard_until(peer: ClientConnection, end: str) -> tuple[int, list[str]]:
    """Bytes of binary messages, and texts, up to this text."""
    count, texts = 0, []
    while (message := said(peer)) != end:
        if isinstance(message, bytes):
            count += len(message)
        else:
            texts.append(message)
    return count, texts


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
def test_a_client_with_windows_is_sent_what_it_takes_and_no_more(worker: Worker, targets: dict[str, int]) -> None:
    """Also after its own end, and to the last byte of the target."""
    with dial(worker) as peer:
        peer.send("WINDOW:100000")
        peer.send(f"OPEN:127.0.0.1:{targets['http']}")
        peer.send(b"GET /bytes/400000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {said(peer), said(peer)} == {"CONNECTED", f"WINDOW:{LARGEST_WINDOW - FIRST_WINDOW}"}
        total = 0
        for more in (100_000, 50_000, 1, 65_537):
            if total > 0:
                peer.send(f"WINDOW:{more}")
            count = 0
            while count < more:
                piece = said(peer)
                assert isinstance(piece, bytes)
                count += len(piece)
            peer.send("PING")
            count += heard_until(peer, "PONG")[0]
            assert count == more
            total += count
        peer.send("FIN")
        for text in ("WINDOW:", "WINDOW:x", "WINDOW:-1", "WINDOW:1234567890", "window:5"):
            peer.send(text)
        peer.send("WINDOW:999999999")
        rest, texts = heard_until(peer, "FIN")
        assert texts == []
        # The answer's head comes before its 400,000 bytes.
        assert 400_000 < total + rest < 401_000
        assert ended(peer) == (1000, [])


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
def test_a_client_with_windows_is_told_what_the_target_takes(worker: Worker, targets: dict[str, int]) -> None:
    size = 9_000_001
    with dial(worker) as peer:
        peer.send("WINDOW:1000000")
        peer.send(f"OPEN:127.0.0.1:{targets['digest']}")
        assert {said(peer), said(peer)} == {"CONNECTED", f"WINDOW:{LARGEST_WINDOW - FIRST_WINDOW}"}
        room, updates = LARGEST_WINDOW, 0
        for piece in pattern(size):
            for start in range(0, len(piece), 60_000):
                part = piece[start : start + 60_000]
                while room < len(part):
                    word, _, more = str(said(peer)).partition(":")
                    assert word == "WINDOW"
                    room += int(more)
                    updates += 1
                    assert room <= LARGEST_WINDOW
                peer.send(part)
                room -= len(part)
        peer.send("FIN")
        answer = b""
        while (message := said(peer)) != "FIN":
            answer += message if isinstance(message, bytes) else b""
        assert json.loads(answer) == {"bytes": size, "sha256": pattern_sha256(size)}
        # One for each quarter, not for each message.
        assert 1 <= updates <= 4 * size // LARGEST_WINDOW


def test_a_client_without_windows_hears_nothing_of_them(worker: Worker, targets: dict[str, int]) -> None:
    for first, end in (("OPEN:127.0.0.1:{}", "FIN"), ("CONNECT:127.0.0.1:{}|", "CLOSE")):
        with dial(worker) as peer:
            peer.send(first.format(targets["http"]))
            peer.send(b"PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 6000000\r\n\r\n")
            for _ in range(100):
                peer.send(bytes(60_000))
            peer.send(b"GET /bytes/6000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            count, texts = heard_until(peer, end)
            assert texts == ["CONNECTED"]
            assert count > 6_000_000


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
def test_a_client_that_goes_away_with_a_full_window_ends_the_targets_connection(worker: Worker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, dial(worker) as peer:
        listener.settimeout(TIMEOUT)
        peer.send("WINDOW:1000")
        peer.send(f"OPEN:127.0.0.1:{listener.getsockname()[1]}")
        target, _ = listener.accept()
        with target:
            target.settimeout(TIMEOUT)
            target.sendall(bytes(100_000))
            count = 0
            while count < 1000:
                message = said(peer)
                count += len(message) if isinstance(message, bytes) else 0
            assert count == 1000
            peer.close()
            with contextlib.suppress(ConnectionResetError):
                assert target.recv(10) == b""


def failures(lookups: JsonResolver) -> Iterator[tuple[str, str]]:
    lookups.addresses["on-platform.test"] = [PLATFORM_ADDRESS]
    lookups.addresses["private.test"] = [PRIVATE_ADDRESS]
    yield f"127.0.0.1:{unused_port()}", "refused"
    yield f"localhost:{unused_port()}", "refused"
    yield f"[::1]:{unused_port()}", "refused"
    yield "no-such-name.invalid:80", "unknown-name"
    yield "on-platform.test:443", "platform-address"
    yield f"{PLATFORM_ADDRESS}:443", "platform-address"
    yield f"[::ffff:{PLATFORM_ADDRESS}]:443", "platform-address"
    yield f"{PRIVATE_ADDRESS}:80", "not-allowed"
    yield "127.0.0.1:25", "not-allowed"


def test_each_failure_has_its_word(worker: Worker, lookups: JsonResolver) -> None:
    for target, word in failures(lookups):
        found = answer(worker, f"OPEN:{target}")
        assert isinstance(found, str)
        assert found.startswith(f"FAILED:{word}:"), (target, found)
        deployed = answer(worker, f"CONNECT:{target}|")
        assert deployed == "ERROR:" + found.split(":", 2)[2]


def test_a_failure_that_nobody_can_explain_is_said_so(worker: Worker, lookups: JsonResolver) -> None:
    lookups.broken = True
    found = answer(worker, "OPEN:no-such-name.invalid:80")
    assert isinstance(found, str)
    assert found.startswith("FAILED:failed:the platform could not connect"), found


def test_a_target_that_does_not_answer_is_timed_out(worker: Worker) -> None:
    with unanswered_port() as port:
        found = answer(worker, f"OPEN:127.0.0.1:{port}")
    assert found == "FAILED:timed-out:the target did not answer within 2 s"


BAD_TARGETS = (
    *("", ":", ":80", "host", "host:", "host:0", "host:65536", "host:99999999999", "host:-1", "host:80:90", "host:8o"),
    *("a b:80", "a/b:80", "user@host:80", "[::1:80", "::1:80", "[::g]:80", "[1.2.3.4]:80", "[]:80", "host:80\n"),
    *("0x7f000001:80", "2130706433:80", "127.1:80", "127.0.0.01:80", "0177.0.0.1:80", "256.1.1.1:80", "1.2.3.4.:80"),
    *("a" * 64 + ".test:80", "a." * 200 + "test:80", "x" * 65536 + ":80", "\x00:80", "host..name:80", "é.test:80"),
)


def test_bad_targets_are_answered_in_the_protocol(worker: Worker) -> None:
    for target in BAD_TARGETS:
        opened = answer(worker, f"OPEN:{target}")
        assert isinstance(opened, str)
        assert opened.startswith("FAILED:failed:bad target"), (target[:50], opened)
        if "|" not in target:
            assert answer(worker, f"CONNECT:{target}|") == "ERROR:" + opened.split(":", 2)[2]


@pytest.mark.parametrize(
    "first",
    ["", "hello", "CONNECT", "CONNECT:127.0.0.1:80", "connect:127.0.0.1:80|", "X" * 65536, b"", b"\x01", b"X" * 65536],
)
def test_bad_first_messages_are_answered_in_the_protocol(worker: Worker, first: str | bytes) -> None:
    assert answer(worker, first) == "ERROR:expected CONNECT:host:port|"


def test_yamux_where_it_is_off_gets_a_go_away(worker: Worker) -> None:
    with dial(worker) as peer:
        peer.send(bytes.fromhex("000200010000000000000001"))
        assert ended(peer) == (1000, [bytes.fromhex("000300000000000000000001")])


def test_a_handshake_with_a_wrong_token_fails(worker: Worker) -> None:
    with pytest.raises(InvalidStatus) as refused:
        dial(worker, token="another-token")
    assert refused.value.response.status_code == 404


def test_many_connections_at_a_time(worker: Worker, targets: dict[str, int]) -> None:
    """50, each of which sends and gets back a megabyte."""
    good = []

    def exchange(number: int) -> None:
        with dial(worker) as peer:
            peer.send(f"CONNECT:127.0.0.1:{targets['echo']}|")
            assert said(peer) == "CONNECTED"
            sent = bytes([number]) * 50_000
            back = bytearray()
            for _ in range(20):
                peer.send(sent)
            while len(back) < 1_000_000:
                piece = said(peer)
                assert isinstance(piece, bytes)
                back += piece
            assert bytes(back) == sent * 20
            good.append(number)

    threads = [threading.Thread(target=exchange, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(good) == 50
