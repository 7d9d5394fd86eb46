"""What waits in the Worker for a target that takes nothing is bounded in memory, whatever it comes in."""

import itertools
import random
import socket
from collections.abc import Iterator

import pytest

from harness.worker import Deployment, Worker
from harness.worker_client import (
    FIN,
    INITIAL_WINDOW,
    PING,
    SYN,
    UPDATE,
    Client,
    accepted,
    address,
    data,
    dial,
    ended,
    frame,
    reluctant_target,
    said,
    session,
)

MOST_KIB = 64 << 10
# Of a window: enough is on its way to the target for the Worker to be told by it, and as much can still be sent.
KEPT = 120_000


@pytest.fixture
def worker(deployment: Deployment) -> Worker:
    return deployment.start(tls=False, MULTIPLEXED="on")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with reluctant_target() as made:
        yield made


def begin(client: Client, stream: int, listener: socket.socket) -> tuple[socket.socket, int]:
    """A stream whose target takes nothing more; and its window's rest."""
    preamble = f"{address(listener)}\n".encode()
    client.say(data(stream, preamble, SYN))
    target = accepted(listener)
    _, credit = client.fill(stream, INITIAL_WINDOW - len(preamble), KEPT)
    return target, credit


def all_is_heard(client: Client) -> None:
    client.say(frame(PING, SYN, 0, 99))
    while client.hear().type != PING:
        pass


def short_message(kind: int, content: bytes) -> bytes:
    """As on the wire, with a mask of zeros: many can be sent at once."""
    return bytes([0x80 | kind, 0x80 | len(content)]) + bytes(4) + content


def test_a_byte_does_not_keep_the_message_that_it_came_in(worker: Worker, listener: socket.socket) -> None:
    """Each message carries one byte for the target, and much for a stream that is gone."""
    filler = data(99, bytes(65_000))
    messages = 15_000
    with session(worker) as client:
        target, _ = begin(client, 1, listener)
        with target:
            before = worker.process.resident_kib()
            for _ in range(messages):
                client.say(data(1, b"x") + filler)
            all_is_heard(client)
            # All together are 950 MiB. Some hundred are what the runtime has not looked through for garbage.
            assert worker.process.resident_kib() - before < messages * 65_000 / 1024 / 2


def test_frames_of_a_byte_take_little_more_than_their_bytes(worker: Worker, listener: socket.socket) -> None:
    """On all streams that a session may have."""
    with session(worker) as client:
        begun = [(stream, *begin(client, stream, listener)) for stream in range(1, 13, 2)]
        before = worker.process.resident_kib()
        for stream, _, credit in begun:
            for _ in range(credit // 5000):
                client.say(data(stream, b"x") * 5000)
        all_is_heard(client)
        assert worker.process.resident_kib() - before < MOST_KIB
        for _, target, _ in begun:
            target.close()


@pytest.mark.parametrize("version", ["new"])
def test_messages_of_a_byte_take_little_more_than_their_bytes(worker: Worker, listener: socket.socket) -> None:
    """The old runtime keeps their events, which are its own, whatever the script does with them."""
    with dial(worker) as peer:
        peer.send(f"OPEN:{address(listener)}")
        with accepted(listener):
            for _ in range(200):
                peer.send(bytes(60_000))
            grown = []
            before = worker.process.resident_kib()
            for _ in range(4):
                peer.socket.sendall(short_message(2, b"x") * 200_000)
                # It is answered behind all that came before.
                assert peer.ping().wait(60)
                grown.append(worker.process.resident_kib() - before)
            # At first it is the runtime's garbage, which it collects when there are some hundred MB.
            assert grown[-1] - grown[1] < MOST_KIB, grown


def test_empty_texts_for_a_target_that_stops_count_too(deployment: Deployment, listener: socket.socket) -> None:
    worker = deployment.start(tls=False, UPLOAD_MIB="8")
    with dial(worker) as peer:
        peer.send(f"OPEN:{address(listener)}")
        assert said(peer) == "CONNECTED"
        with accepted(listener):
            for _ in range(100):
                peer.send(bytes(60_000))
            peer.socket.sendall(short_message(1, b"") * 40_000)
            assert ended(peer) == (1013, [])


@pytest.mark.parametrize("version", ["new", "old"])
@pytest.mark.parametrize("mode", ["simple", "multiplexed"])
def test_pieces_of_all_sizes_wait_in_their_order(worker: Worker, listener: socket.socket, mode: str) -> None:
    chance = random.Random(7)
    content = chance.randbytes(120_000)
    cuts = [0]
    while cuts[-1] < len(content):
        cuts.append(cuts[-1] + chance.choice([1, 2, 100, 4095, 4096, 5000, 9000]))
    pieces = [content[start:end] for start, end in itertools.pairwise(cuts)]
    if mode == "simple":
        with dial(worker) as peer:
            peer.send(f"OPEN:{address(listener)}")
            target = accepted(listener)
            filled = 200 * 60_000
            for _ in range(200):
                peer.send(bytes(60_000))
            for piece in pieces:
                peer.send(piece)
            peer.send("FIN")
            assert received(target)[filled:] == content
    else:
        with session(worker) as client:
            target, _ = begin(client, 1, listener)
            for piece in pieces:
                client.say(data(1, piece))
            client.say(frame(UPDATE, FIN, 1, 0))
            assert received(target)[-len(content) :] == content


def received(target: socket.socket) -> bytes:
    """All that comes up to the end."""
    heard = bytearray()
    with target:
        while piece := target.recv(1 << 20):
            heard += piece
    return bytes(heard)
