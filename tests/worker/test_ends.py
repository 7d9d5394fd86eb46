"""What a connection holds ends with it, whatever its ends are waiting for."""

import socket
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from harness.targets import pattern
from harness.waiting import wait_until
from harness.worker import Deployment, Worker
from harness.worker_client import (
    FIN,
    INITIAL_WINDOW,
    RST,
    SYN,
    TIMEOUT,
    UPDATE,
    Client,
    accepted,
    address,
    data,
    dial,
    ended,
    extended,
    frame,
    reluctant_target,
    said,
    session,
)

# All targets; they are reached by the relay.
OUT_OF_REACH = ("127.0.0.1/32", "::1/128")


def is_served(client: Client, port: int, streams: Iterator[int]) -> bool:
    """Whether a new stream is given a socket."""
    stream = next(streams)
    client.say(data(stream, extended(f"127.0.0.1:{port}"), SYN))
    status, _ = client.answer(stream)
    client.say(frame(UPDATE, RST, stream, 0))
    return status == 0


@pytest.mark.parametrize("waiting", ["for a target that says nothing", "for a target that takes nothing"])
def test_a_stream_that_is_reset_gives_its_socket_back(
    deployment: Deployment, targets: dict[str, int], waiting: str
) -> None:
    worker = deployment.start(tls=False, MULTIPLEXED="on", SOCKET_LIMIT="1")
    with reluctant_target() as listener, session(worker) as client:
        preamble = extended(address(listener))
        client.say(data(1, preamble, SYN))
        with accepted(listener) as target:
            assert client.answer(1)[0] == 0
            if waiting == "for a target that says nothing":
                client.say(frame(UPDATE, FIN, 1, 0))
                assert target.recv(1) == b""
            else:
                client.fill(1, INITIAL_WINDOW - len(preamble))
            client.say(frame(UPDATE, RST, 1, 0))
            streams = iter(range(3, 1001, 2))
            wait_until(lambda: is_served(client, targets["echo"], streams), "the socket is given back", TIMEOUT)


def test_what_came_before_an_end_reaches_the_target_though_a_reset_follows(worker: Worker) -> None:
    """As with TCP: a program that ends its direction and goes away at once has been heard to its end."""
    with reluctant_target() as listener, session(worker) as client:
        preamble = extended(address(listener))
        client.say(data(1, preamble, SYN))
        with accepted(listener) as target:
            sent, _ = client.fill(1, INITIAL_WINDOW - len(preamble))
            client.say(frame(UPDATE, FIN, 1, 0), frame(UPDATE, RST, 1, 0))
            heard = 0
            while piece := target.recv(1 << 16):
                heard += len(piece)
            assert heard == sent


@pytest.fixture
def worker(deployment: Deployment) -> Worker:
    return deployment.start(tls=False, MULTIPLEXED="on")


def test_a_target_that_resets_after_its_end_ends_the_clients_upload(worker: Worker) -> None:
    """Simple mode; in multiplexed mode the stream is reset."""
    with reluctant_target() as listener, dial(worker) as peer:
        peer.send(f"OPEN:{address(listener)}")
        target = accepted(listener)
        target.sendall(b"bye")
        target.shutdown(socket.SHUT_WR)
        assert [said(peer) for _ in range(3)] == ["CONNECTED", b"bye", "FIN"]
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        target.close()
        peer.send(b"more")
        assert ended(peer) == (1011, [])


class _Relay:
    """A server of the protocol that asks whether somebody is there, whose target has ended, and takes no more than a first window."""

    def __init__(self) -> None:
        self.is_full = threading.Event()
        self.go = threading.Event()
        self.answered = list[str | bytes]()
        self._server = serve(self._handle, "127.0.0.2", 0, compression=None, process_response=self._announce)
        self.url = f"ws://127.0.0.2:{self._server.socket.getsockname()[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def _announce(_: ServerConnection, __: Request, response: Response) -> Response:
        assert response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        headers = Headers(response.headers)
        headers["X-Stream-Extensions"] = "1, simple-open, simple-window"
        return Response(response.status_code, response.reason_phrase, headers)

    def _handle(self, peer: ServerConnection) -> None:
        assert str(peer.recv(TIMEOUT)).startswith("WINDOW:")
        assert str(peer.recv(TIMEOUT)).startswith("OPEN:")
        peer.send("CONNECTED")
        peer.send("PING")
        self.answered.append(peer.recv(TIMEOUT))
        peer.send("FIN")
        taken = 0
        while taken < INITIAL_WINDOW:
            taken += len(peer.recv(TIMEOUT))
        self.is_full.set()
        self.go.wait(TIMEOUT)

    def stop(self) -> None:
        self._server.shutdown()


@pytest.fixture
def relay() -> Iterator[_Relay]:
    made = _Relay()
    yield made
    made.stop()


@pytest.fixture
def relayed(deployment: Deployment, relay: _Relay) -> Worker:
    prefixes = ",".join(OUT_OF_REACH)
    return deployment.start(
        tls=False, denied=OUT_OF_REACH, PLATFORM_PREFIXES=prefixes, RELAY=relay.url, MULTIPLEXED="on"
    )


def test_a_relay_that_goes_away_with_a_full_window_ends_a_simple_connection(relayed: Worker, relay: _Relay) -> None:
    with dial(relayed) as peer:
        peer.send("OPEN:127.0.0.1:80")
        assert [said(peer) for _ in range(2)] == ["CONNECTED", "FIN"]
        assert relay.answered == ["PONG"]
        for piece in pattern(600_000):
            peer.send(piece)
        assert relay.is_full.wait(TIMEOUT)
        relay.go.set()
        assert ended(peer) == (1011, [])


def test_a_relay_that_goes_away_with_a_full_window_resets_its_stream(relayed: Worker, relay: _Relay) -> None:
    with session(relayed) as client:
        preamble = extended("127.0.0.1:80")
        client.say(data(1, preamble, SYN))
        assert client.answer(1)[0] == 0
        client.fill(1, INITIAL_WINDOW - len(preamble))
        assert relay.is_full.wait(TIMEOUT)
        relay.go.set()
        while not (found := client.hear()).flags & RST:
            pass
        assert found.stream == 1
