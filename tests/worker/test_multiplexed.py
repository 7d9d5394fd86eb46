"""Multiplexed mode frame by frame: windows, limits, preambles, and whatever a client should not send."""

import contextlib
import hashlib
import socket
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from harness.json_resolver import JsonResolver
from harness.ports import unused_port
from harness.targets import pattern, pattern_sha256
from harness.worker import PLATFORM_ADDRESS, Deployment, Worker, unanswered_port
from harness.worker_client import (
    ACK,
    DATA,
    FIN,
    INITIAL_WINDOW,
    LONGEST_PAYLOAD,
    PING,
    RST,
    SYN,
    TIMEOUT,
    UPDATE,
    Client,
    Frame,
    data,
    extended,
    frame,
    session,
)


@pytest.fixture
def worker(deployment: Deployment) -> Worker:
    return deployment.start(tls=False, MULTIPLEXED="on", CONNECT_SECONDS="2")


def test_a_deployed_preamble_carries_without_an_answer(worker: Worker, targets: dict[str, int]) -> None:
    with session(worker) as client:
        client.say(data(1, f"127.0.0.1:{targets['echo']}\nearly".encode(), SYN))
        assert next(client.hear_from(1)).payload == b"early"
        client.say(frame(UPDATE, FIN, 1, 0))
        assert [found.flags for found in client.hear_from(1)] == [FIN]


def test_an_extended_preamble_is_answered_and_half_closes(worker: Worker, targets: dict[str, int]) -> None:
    with session(worker) as client:
        client.say(
            data(1, extended(f"127.0.0.1:{targets['digest']}", flags=1) + b"early", SYN), frame(UPDATE, FIN, 1, 0)
        )
        heard = b"".join(found.payload for found in client.hear_from(1))
        assert heard[:3] == b"\x02\x00\x00"
        assert b'"bytes": 5' in heard


def test_frames_may_be_cut_anywhere(worker: Worker, targets: dict[str, int]) -> None:
    whole = data(1, extended(f"127.0.0.1:{targets['digest']}") + b"early", SYN) + frame(UPDATE, FIN, 1, 0)
    with session(worker) as client:
        client.say(*(whole[at : at + 1] for at in range(len(whole))))
        assert b'"bytes": 5' in b"".join(found.payload for found in client.hear_from(1))


def test_each_failure_has_its_status(worker: Worker, lookups: JsonResolver) -> None:
    lookups.addresses["on-platform.test"] = [PLATFORM_ADDRESS]
    expected = {
        f"127.0.0.1:{unused_port()}": 5,
        "no-such-name.invalid:80": 0xF0,
        "on-platform.test:443": 0xF1,
        "127.0.0.1:25": 2,
        "nowhere": 1,
    }
    with session(worker) as client:
        for number, (target, status) in enumerate(expected.items()):
            stream = 2 * number + 1
            client.say(data(stream, extended(target), SYN))
            found, reason = client.answer(stream)
            assert (found, bool(reason)) == (status, True), (target, reason)
            client.say(frame(UPDATE, FIN, stream, 0))


def test_a_deployed_preamble_that_leads_nowhere_ends_the_stream_alone(worker: Worker, targets: dict[str, int]) -> None:
    with session(worker) as client:
        client.say(data(1, f"127.0.0.1:{unused_port()}\n".encode(), SYN))
        assert [found.flags for found in client.hear_from(1)] == [RST]
        client.say(data(3, f"127.0.0.1:{targets['banner']}\n".encode(), SYN))
        assert next(client.hear_from(3)).payload == b"220 ready\r\n"


@pytest.mark.parametrize(
    "preamble",
    [
        pytest.param(b"x" * 65536, id="64-KiB"),
        pytest.param(b"x" * 512, id="512-bytes"),
        pytest.param(extended("127.0.0.1:80", version=2), id="version"),
        pytest.param(extended("127.0.0.1:80", command=2), id="command"),
        pytest.param(extended("x" * 507), id="long-extended"),
        pytest.param(b"127.0.0.1\n", id="no-port"),
        pytest.param(b"\n", id="empty"),
    ],
)
def test_a_bad_preamble_resets_the_stream_alone(worker: Worker, targets: dict[str, int], preamble: bytes) -> None:
    with session(worker) as client:
        client.say(data(1, preamble, SYN))
        assert [found.flags for found in client.hear_from(1)] == [RST]
        client.say(data(3, f"127.0.0.1:{targets['banner']}\n".encode(), SYN))
        assert next(client.hear_from(3)).payload == b"220 ready\r\n"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\x01" + bytes(11), id="version"),
        pytest.param(frame(4, 0, 1, 0), id="type"),
        pytest.param(frame(UPDATE, SYN, 2, 0), id="even-stream"),
        pytest.param(frame(UPDATE, SYN, 0, 0), id="stream-0"),
        pytest.param(frame(UPDATE, SYN, 1, 0) * 2, id="opened-twice"),
        pytest.param(frame(DATA, SYN, 1, INITIAL_WINDOW + 1), id="window-overrun"),
    ],
)
def test_a_broken_protocol_ends_the_session_with_a_go_away(worker: Worker, bad: bytes) -> None:
    with session(worker) as client:
        client.say(frame(PING, SYN, 0, 7), bad)
        assert client.go_away() == 1


def test_pings_are_answered(worker: Worker) -> None:
    with session(worker) as client:
        client.say(frame(PING, SYN, 0, 77))
        assert client.hear() == Frame(PING, ACK, 0, 77)


@pytest.mark.parametrize("window", [64 << 10, 256 << 10])
def test_a_target_that_does_not_read_holds_its_client_back(deployment: Deployment, window: int) -> None:
    """The Worker takes no more than the first window and what the kernel holds; once the target reads, all arrives."""
    worker = deployment.start(tls=False, MULTIPLEXED="on", WINDOW_KIB=str(window >> 10))
    total = 12 << 20
    with socket.socket() as listener, session(worker) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(TIMEOUT)
        preamble = f"127.0.0.1:{listener.getsockname()[1]}\n".encode()
        client.say(data(1, preamble, SYN))
        target, _ = listener.accept()
        target.settimeout(TIMEOUT)
        credit, sent = INITIAL_WINDOW - len(preamble), 0
        content = b"".join(pattern(total))
        with target:

            def push(quiet: float) -> None:
                """Sends what the window allows, until nothing more is allowed for so many seconds."""
                nonlocal credit, sent
                while sent < total:
                    length = min(credit, total - sent, 16 << 10)
                    if length > 0:
                        client.say(data(1, content[sent : sent + length]))
                        credit, sent = credit - length, sent + length
                        continue
                    try:
                        found = client.peer.recv(timeout=quiet)
                    except TimeoutError:
                        return
                    assert isinstance(found, bytes)
                    for at in range(0, len(found), 12):
                        kind, _, _, value = struct.unpack(">xBHII", found[at : at + 12])
                        if kind == UPDATE:
                            credit += value
                            assert credit <= max(6 * window, INITIAL_WINDOW)

            push(1.0)
            assert sent < total, "nothing held the client back"
            held = sent
            received = bytearray()
            while len(received) < held - (512 << 10):
                received += target.recv(1 << 20)
            reading = threading.Thread(target=lambda: _read(target, received, total))
            reading.start()
            push(10.0)
            reading.join(TIMEOUT)
            assert bytes(received) == content


def windows_given(client: Client, stream: int, credit: int, size: int) -> tuple[list[int], int]:
    """Uses up each window before the next is heard of, for at least so many bytes; the updates, and what is left of the last."""
    given, sent = list[int](), 0
    while sent < size or not given:
        if credit > 0:
            length = min(credit, LONGEST_PAYLOAD)
            client.say(data(stream, bytes(length)))
            credit, sent = credit - length, sent + length
            continue
        found = client.hear()
        if (found.type, found.stream) == (UPDATE, stream) and found.value > 0:
            given.append(found.value)
            credit += found.value
    return given, credit


@pytest.mark.parametrize(("window", "unit"), [(64 << 10, 32 << 10), (256 << 10, 65_516)])
def test_windows_are_given_back_in_whole_messages(
    deployment: Deployment, targets: dict[str, int], window: int, unit: int
) -> None:
    """So that a client with much to send fills its messages: 65,516 bytes are what our client's longest one carries."""
    worker = deployment.start(tls=False, MULTIPLEXED="on", WINDOW_KIB=str(window >> 10))
    preamble = f"127.0.0.1:{targets['digest']}\n".encode()
    with session(worker) as client:
        client.say(data(1, preamble, SYN))
        given, _ = windows_given(client, 1, INITIAL_WINDOW - len(preamble), 4 << 20)
    assert [value % unit for value in given] == [0] * len(given)


def test_a_stream_has_the_windows_that_no_other_needs(worker: Worker, targets: dict[str, int]) -> None:
    """Up to six of them; when there are others, it is left with its own."""
    window = 256 << 10
    preamble = f"127.0.0.1:{targets['digest']}\n".encode()
    with session(worker) as client:
        client.say(data(1, preamble, SYN))
        alone, credit = windows_given(client, 1, INITIAL_WINDOW - len(preamble), 8 << 20)
        assert 4 * window < max(alone) <= 6 * window
        client.say(*(frame(UPDATE, SYN, stream, 0) for stream in range(3, 13, 2)), frame(PING, SYN, 0, 1))
        while (found := client.hear()).type != PING:
            credit += found.value if (found.type, found.stream) == (UPDATE, 1) else 0
        beside, _ = windows_given(client, 1, credit, 8 << 20)
        assert max(beside) <= window


def _read(target: socket.socket, received: bytearray, total: int) -> None:
    while len(received) < total and (piece := target.recv(1 << 20)):
        received += piece


def test_a_stream_beyond_the_socket_limit_is_refused_before_it_is_acknowledged(
    deployment: Deployment, targets: dict[str, int]
) -> None:
    """So that its client knows that nothing of it was used, and can place it on another session."""
    worker = deployment.start(tls=False, MULTIPLEXED="on", SOCKET_LIMIT="2")
    target = f"127.0.0.1:{targets['echo']}"
    with session(worker) as client:
        for stream in (1, 3):
            client.say(data(stream, extended(target), SYN))
            assert client.answer(stream)[0] == 0
        client.say(data(5, extended(target), SYN))
        assert client.hear() == Frame(UPDATE, RST, 5, 0)
        client.say(frame(UPDATE, FIN, 1, 0))
        assert [found.flags for found in client.hear_from(1)] == [FIN]
        client.say(data(7, extended(target), SYN))
        assert client.answer(7)[0] == 0


def test_a_socket_that_is_still_being_opened_counts_though_its_stream_is_gone(
    deployment: Deployment, targets: dict[str, int]
) -> None:
    worker = deployment.start(tls=False, MULTIPLEXED="on", SOCKET_LIMIT="1", CONNECT_SECONDS="3")
    with unanswered_port() as silent, session(worker) as client:
        client.say(data(1, extended(f"127.0.0.1:{silent}"), SYN), frame(UPDATE, RST, 1, 0))
        client.say(data(3, extended(f"127.0.0.1:{targets['echo']}"), SYN))
        assert client.answer(3) == (0xF2, "all 1 sockets of this session are in use")


def test_streams_without_end_are_reset(worker: Worker) -> None:
    with session(worker) as client:
        client.say(*(frame(UPDATE, SYN, 2 * n + 1, 0) for n in range(100)))
        flags = [client.hear().flags for _ in range(100)]
    assert flags == [ACK] * 6 + [RST] * 94


@pytest.mark.parametrize("way", ["reset", "close", "lost"])
def test_a_stream_that_the_client_gives_up_ends_the_targets_connection(worker: Worker, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, session(worker) as client:
        listener.settimeout(TIMEOUT)
        client.say(data(1, f"127.0.0.1:{listener.getsockname()[1]}\n".encode(), SYN))
        target, _ = listener.accept()
        with target:
            target.settimeout(TIMEOUT)
            if way == "reset":
                client.say(frame(UPDATE, RST, 1, 0))
            elif way == "close":
                client.peer.close()
            else:
                client.peer.socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(ConnectionResetError):
                assert target.recv(10) == b""


def test_a_target_that_resets_resets_the_stream(worker: Worker, targets: dict[str, int]) -> None:
    with session(worker) as client:
        client.say(data(1, extended(f"127.0.0.1:{targets['reset']}"), SYN))
        assert client.answer(1)[0] == 0
        client.say(data(1, b"hello"))
        assert [found.flags & (FIN | RST) for found in client.hear_from(1)][-1] == RST


def test_slow_targets_hold_up_nobody_else(worker: Worker, targets: dict[str, int]) -> None:
    """Three targets that take nothing, and beside them a download and an echo, on one session."""
    size = 5_000_011
    with session(worker) as client:
        for stream in (1, 3, 5):
            client.say(data(stream, f"127.0.0.1:{targets['silent']}\n".encode(), SYN))
            client.say(data(stream, bytes(200_000)))
        client.say(data(7, f"127.0.0.1:{targets['http']}\n".encode(), SYN))
        client.say(data(7, f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()))
        body = bytearray()
        for found in client.hear_from(7):
            body += found.payload
            client.say(frame(UPDATE, 0, 7, len(found.payload)))
        content = bytes(body).partition(b"\r\n\r\n")[2]
        assert hashlib.sha256(content).hexdigest() == pattern_sha256(size)


frames = st.one_of(
    st.binary(max_size=40),
    st.builds(frame, st.integers(0, 5), st.integers(0, 0xFFFF), st.integers(0, 9), st.integers(0, 0xFFFFFFFF)),
    st.builds(data, st.integers(0, 9), st.binary(max_size=600), st.sampled_from([0, SYN, SYN, FIN, RST, SYN | FIN])),
    st.builds(lambda stream, target: data(stream, extended(target), SYN), st.integers(0, 9), st.text(max_size=40)),
)


@pytest.mark.parametrize("version", ["new", "old"])
def test_no_bytes_do_harm(worker: Worker) -> None:
    """Whatever a client sends after the first message of a session, the Worker ends it in the protocol and goes on serving others."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(frames, max_size=8))
    def attempt(pieces: list[bytes]) -> None:
        with session(worker) as client, contextlib.suppress(ConnectionClosed):
            client.say(frame(PING, SYN, 0, 1), *pieces)

    attempt()
    with session(worker) as client:
        client.say(frame(PING, SYN, 0, 5))
        assert client.hear() == Frame(PING, ACK, 0, 5)
    assert not [line for line in worker.process.lines if "Uncaught" in line or "exception" in line.lower()]
