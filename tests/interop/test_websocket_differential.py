"""rust/websocket and the Python package `websockets` must say the same of every byte stream.

Where they differ on purpose the test says so: rust/websocket refuses payload lengths that are not in their shortest form or
that exceed 63 bits (RFC 6455 section 5.2), which `websockets` lets pass, and takes a close frame inside a fragmented message for a
close, which `websockets` takes for an error.
"""

import base64
import itertools
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from harness.requirements import missing

ROOT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT = 600.0
TOKEN = "s3cret"
# RFC 6455 section 1.3.
NONCE = b"the sample nonce"
KEY = base64.b64encode(NONCE).decode()
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

# Examples are many and cheap; the first one pays for the program's start.
thorough = settings(deadline=None, max_examples=300)


class Outcome(NamedTuple):
    """What a receiver made of a stream: messages and control frames, and the close code with which it refused, if it did."""

    heard: list[tuple[str, bytes]]
    refused: int | None


class Peer:
    """The Rust side: examples/frame_peer.rs, asked over its standard input."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words: str | bytes) -> list[list[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = " ".join(word if isinstance(word, str) else word.hex() or "-" for word in words)
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = []
        while (said := self._process.stdout.readline().split()) != ["done"]:
            assert said, f"the peer failed over: {line}"
            answer.append(said)
        return answer

    def decode(self, side: Side, pieces: Sequence[bytes]) -> Outcome:
        heard: list[tuple[str, bytes]] = []
        message = b""
        for said in self.ask("decode", side.name.lower(), *pieces):
            match said:
                case ["data", kind, end, payload]:
                    message += unhex(payload)
                    if end == "true":
                        heard.append((kind.lower(), message))
                        message = b""
                case ["ping" | "pong" as kind, payload]:
                    heard.append((kind, unhex(payload)))
                case ["close", code, reason]:
                    heard.append(("close", close_payload(int(code), unhex(reason))))
                case ["error", code, _]:
                    return Outcome(heard, int(code))
                case _:
                    raise AssertionError(said)
        return Outcome(heard, None)

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(10) == 0


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    if shutil.which("cargo") is None:
        missing("cargo is not installed: see https://rustup.rs")
    # The settings of `make test-rust`, which has built it already when it ran before.
    built = subprocess.run(
        [
            "cargo",
            "--config",
            "scripts/checked.toml",
            "build",
            "--release",
            "--locked",
            "--message-format=json",
            "-p",
            "ech-workers-websocket",
            "--example",
            "frame_peer",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    artifacts = (json.loads(line) for line in built.stdout.splitlines())
    [program] = {
        artifact["executable"] for artifact in artifacts if artifact.get("target", {}).get("name") == "frame_peer"
    }
    started = Peer(Path(program))
    yield started
    started.stop()


def unhex(text: str) -> bytes:
    return b"" if text == "-" else bytes.fromhex(text)


def close_payload(code: int, reason: bytes) -> bytes:
    return b"" if code == 1005 else struct.pack("!H", code) + reason


def python_outcome(side: Side, pieces: Sequence[bytes]) -> tuple[Outcome, str]:
    """What `websockets` makes of a stream, and why it refused it."""
    protocol = Protocol(side, max_size=None)
    heard: list[tuple[str, bytes]] = []
    kind, message = "", b""
    for piece in pieces:
        protocol.receive_data(piece)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                kind, message = frame.opcode.name.lower(), b""
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                message += bytes(frame.data)
                if frame.fin:
                    heard.append((kind, message))
            else:
                heard.append((frame.opcode.name.lower(), bytes(frame.data)))
    if protocol.parser_exc is None:
        return Outcome(heard, None), ""
    assert protocol.close_sent is not None
    return Outcome(heard, int(protocol.close_sent.code)), str(protocol.parser_exc)


def sender_of(receiver: Side) -> Side:
    return Side.SERVER if receiver is Side.CLIENT else Side.CLIENT


def cut(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The stream in pieces; a cut beyond the end wraps around."""
    places = sorted({0, len(stream), *(place % (len(stream) + 1) for place in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


sides = st.sampled_from(Side)
cuts = st.lists(st.integers(0, 1 << 17), max_size=20)
payloads = st.one_of(
    st.binary(max_size=300),
    # The borders of each form of the length.
    st.sampled_from([0, 1, 125, 126, 127, 65535, 65536]).map(
        lambda length: bytes(index * 7 & 0xFF for index in range(length))
    ),
)
control = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))
close_codes = st.one_of(
    st.none(), st.sampled_from([1000, 1001, 1002, 1003, *range(1007, 1015)]), st.integers(3000, 4999)
)


@st.composite
def frames(draw: st.DrawFn) -> list[Frame]:
    """A valid stream: messages in fragments, some of them empty, control frames anywhere, and a close or none."""
    found: list[Frame] = []
    for kind in draw(st.lists(st.sampled_from([Opcode.TEXT, Opcode.BINARY]), max_size=4)):
        fragments = draw(st.lists(payloads, min_size=1, max_size=4))
        for index, fragment in enumerate(fragments):
            found.append(Frame(kind if index == 0 else Opcode.CONT, fragment, index == len(fragments) - 1))
            found += [Frame(opcode, payload) for opcode, payload in draw(st.lists(control, max_size=2))]
    if draw(st.booleans()):
        code = draw(close_codes)
        reason = draw(st.text(max_size=30)).encode() if code is not None else b""
        found.append(Frame(Opcode.CLOSE, close_payload(code or 1005, reason)))
    return found


class RawFrame(NamedTuple):
    """A frame whose header may break any rule but that of the shortest length."""

    fin: bool
    reserved: int
    opcode: int
    mask_right: bool
    payload: bytes

    def bytes(self, sender: Side) -> bytes:
        masked = (sender is Side.CLIENT) == self.mask_right
        first = self.fin << 7 | self.reserved << 4 | self.opcode
        length = len(self.payload)
        if length < 126:
            header = struct.pack("!BB", first, masked << 7 | length)
        else:
            header = struct.pack("!BBH", first, masked << 7 | 126, length)
        if not masked:
            return header + self.payload
        key = b"\x37\xfa\x21\x3d"
        return header + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(self.payload))


def mostly(usual: int, strategy: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return st.one_of(*[st.just(usual)] * 7, strategy)


raw_frames = st.builds(
    RawFrame,
    fin=st.booleans(),
    reserved=mostly(0, st.integers(0, 7)),
    opcode=st.one_of(st.sampled_from([0, 0, 0, 1, 2, 2, 8, 9, 10]), st.integers(0, 15)),
    mask_right=mostly(True, st.just(False)),
    payload=st.one_of(
        st.binary(max_size=10),
        st.binary(min_size=120, max_size=140),
        st.tuples(st.integers(990, 1020), st.text(max_size=5)).map(
            lambda close: struct.pack("!H", close[0]) + close[1].encode()
        ),
    ),
)


@thorough
@given(side=sides, stream=frames(), cuts=cuts)
def test_frames_written_by_websockets_are_read_alike(
    peer: Peer, side: Side, stream: list[Frame], cuts: list[int]
) -> None:
    written = b"".join(frame.serialize(mask=side is Side.SERVER) for frame in stream)
    pieces = cut(written, cuts)
    expected, reason = python_outcome(side, pieces)
    assert expected.refused is None, reason
    assert peer.decode(side, pieces) == expected


@thorough
@given(side=sides, stream=frames(), key=st.binary(min_size=4, max_size=4))
@example(side=Side.SERVER, stream=[Frame(Opcode.BINARY, b"\x01" * 70000)], key=b"\0\0\0\0")
def test_frames_written_by_us_are_read_by_websockets(peer: Peer, side: Side, stream: list[Frame], key: bytes) -> None:
    written = []
    for frame in stream:
        [[_, encoded]] = peer.ask(
            "encode",
            str(int(frame.opcode)),
            str(int(frame.fin)),
            bytes(frame.data),
            key if side is Side.SERVER else b"",
        )
        written.append(bytes.fromhex(encoded))
    if side is Side.CLIENT:
        assert written == [frame.serialize(mask=False) for frame in stream]
    expected, _ = python_outcome(side, [frame.serialize(mask=side is Side.SERVER) for frame in stream])
    assert python_outcome(side, written) == (expected, "")


@thorough
@given(code=close_codes, reason=st.text(max_size=200))
def test_our_close_frame_is_read_by_websockets_however_long_its_reason(
    peer: Peer, code: int | None, reason: str
) -> None:
    [[_, encoded]] = peer.ask("close", "-" if code is None else str(code), reason.encode(), b"\x01\x02\x03\x04")
    outcome, why = python_outcome(Side.SERVER, [bytes.fromhex(encoded)])
    assert outcome.refused is None, why
    [(_, payload)] = outcome.heard
    if code is None:
        assert payload == b""
    else:
        assert payload[:2] == struct.pack("!H", code)
        assert reason.startswith(payload[2:].decode())
        assert len(payload) > 121 or payload[2:] == reason.encode()


@thorough
@given(side=sides, stream=st.lists(raw_frames, max_size=6), cuts=cuts)
def test_broken_streams_are_refused_alike_and_at_the_same_place(
    peer: Peer, side: Side, stream: list[RawFrame], cuts: list[int]
) -> None:
    pieces = cut(b"".join(frame.bytes(sender_of(side)) for frame in stream), cuts)
    expected, reason = python_outcome(side, pieces)
    outcome = peer.decode(side, pieces)
    if reason == "incomplete fragmented message":
        assert outcome.refused is None
        assert outcome.heard[-1][0] == "close"
        assert outcome.heard[:-1] == expected.heard
    else:
        assert outcome == expected, reason


@thorough
@given(side=sides, garbage=st.binary(max_size=60), cuts=cuts)
def test_garbage_is_heard_alike_as_far_as_it_is_heard(peer: Peer, side: Side, garbage: bytes, cuts: list[int]) -> None:
    outcome = peer.decode(side, [garbage])
    assert peer.decode(side, cut(garbage, cuts)) == outcome
    expected, _ = python_outcome(side, [garbage])
    # Half a frame is no error for `websockets`, whereas ours may have seen enough of it to refuse.
    assume(expected.refused is not None)
    assert outcome.refused is not None
    assert outcome.heard == expected.heard


def test_every_close_code_is_judged_alike(peer: Peer) -> None:
    for code in (*range(5100), 0x7FFF, 0x8000, 0xFFFF):
        frame = struct.pack("!BBH", 0x88, 2, code)
        assert peer.decode(Side.CLIENT, [frame]) == python_outcome(Side.CLIENT, [frame])[0], code


@pytest.mark.parametrize(
    ("header", "length"),
    [("827e0005", 5), ("827e007d", 125), ("827f0000000000000005", 5), ("827f000000000000ffff", 65535)],
)
def test_a_length_that_is_not_in_its_shortest_form_is_refused_by_us_alone(peer: Peer, header: str, length: int) -> None:
    frame = bytes.fromhex(header) + bytes(length)
    assert python_outcome(Side.CLIENT, [frame])[0] == Outcome([("binary", bytes(length))], None)
    assert peer.decode(Side.CLIENT, [frame]) == Outcome([], 1002)


@thorough
@given(cuts=cuts, token=st.sampled_from([None, TOKEN]))
def test_a_websockets_server_accepts_our_request_and_we_its_response(
    peer: Peer, cuts: list[int], token: str | None
) -> None:
    [[_, request]] = peer.ask("request", "example.org:8443", "/ws?x=1", token or "-", NONCE)
    server = ServerProtocol(subprotocols=[Subprotocol(TOKEN)] if token else None)
    for piece in cut(bytes.fromhex(request), cuts):
        server.receive_data(piece)
    [event] = server.events_received()
    assert not isinstance(event, Frame)
    response = server.accept(event)  # type: ignore[arg-type]
    server.send_response(response)
    assert server.handshake_exc is None
    assert (server.state, server.subprotocol) == (State.OPEN, token)
    server.send_binary(b"first")
    answer = b"".join(server.data_to_send())
    head = answer.index(b"\r\n\r\n") + 4

    pieces = cut(answer, cuts)
    [[verdict, index, taken, protocol]] = peer.ask("response", token or "-", NONCE, *pieces)
    assert (verdict, unhex(protocol).decode()) == ("accepted", token or "")
    assert sum(map(len, pieces[: int(index)])) + int(taken) == head


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_websockets_client_is_accepted_by_us_and_accepts_our_response(peer: Peer, token: str | None) -> None:
    client = ClientProtocol(parse_uri("wss://example.org/ws"), subprotocols=[Subprotocol(TOKEN)] if token else None)
    client.send_request(client.connect())
    [[verdict, protocol], *fields] = peer.ask("upgrade", b"".join(client.data_to_send()))
    assert (verdict, unhex(protocol).decode()) == ("upgrade", token or "")
    lines = [f"{name}: {value}" for _, name, value in fields]
    if token:
        lines.append(f"sec-websocket-protocol: {token}")
    client.receive_data("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode())
    assert client.handshake_exc is None
    assert (client.state, client.subprotocol) == (State.OPEN, token)


def head(first: str, fields: Sequence[str]) -> bytes:
    """A head of a request or response; each of the fields may hold several lines, or none."""
    return "\r\n".join([first, *filter(None, fields), "", ""]).encode()


def test_responses_are_judged_alike(peer: Peer) -> None:
    accepted = 0
    for status, *fields in itertools.product(
        ["101 Switching Protocols", "200 OK", "404 Not Found"],
        ["", "Upgrade: websocket", "UPGRADE: WebSocket", "Upgrade: h2c"],
        [
            "",
            "Connection: Upgrade",
            "connection: keep-alive ,upgrade",
            "Connection: close",
            "Connection: close\r\nConnection: upgrade",
        ],
        [
            "",
            f"Sec-WebSocket-Accept: {ACCEPT}",
            f"Sec-WebSocket-Accept: {ACCEPT.lower()}",
            "\r\n".join([f"Sec-WebSocket-Accept: {ACCEPT}"] * 2),
        ],
        ["", "Sec-WebSocket-Extensions: permessage-deflate"],
        ["", "Sec-WebSocket-Protocol: other"],
    ):
        response = head(f"HTTP/1.1 {status}", ["Content-Length: 0" if status[0] != "1" else "", *fields])
        client = ClientProtocol(parse_uri("wss://example.org/"))
        client.key = KEY
        client.send_request(client.connect())
        client.receive_data(response)
        [[verdict, *_]] = peer.ask("response", "-", NONCE, response)
        assert (verdict == "accepted") == (client.state is State.OPEN), response
        accepted += verdict == "accepted"
    assert accepted == 2 * 3


def test_requests_are_judged_alike(peer: Peer) -> None:
    accepted = 0
    for fields in itertools.product(
        ["", "Upgrade: websocket", "upgrade: WebSocket", "Upgrade: h2c"],
        ["", "Connection: Upgrade", "connection: keep-alive ,upgrade", "Connection: close"],
        [
            "",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Version: 8",
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13",
        ],
        [
            "",
            f"Sec-WebSocket-Key: {KEY}",
            f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}",
            "Sec-WebSocket-Key: c2hvcnQ=",
            "Sec-WebSocket-Key: !",
        ],
        ["", "Sec-WebSocket-Extensions: permessage-deflate"],
    ):
        request = head("GET / HTTP/1.1", ["Host: example.org", *fields])
        server = ServerProtocol()
        server.receive_data(request)
        [event] = server.events_received()
        response = server.accept(event)  # type: ignore[arg-type]
        [[verdict, *_], *_] = peer.ask("upgrade", request)
        assert (verdict == "upgrade") == (response.status_code == 101), request
        accepted += verdict == "upgrade"
    assert accepted == 2 * 2 * 2
