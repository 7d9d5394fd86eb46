"""Opening streams through the API: one deadline, cancelling, Ctrl-C, and the end of the tunnel."""

import asyncio
import gc
import socket
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from ech_workers import EngineClosed, SessionError, SessionTimeout, TargetError, TargetTimeout, Tunnel, aio
from ech_workers.demo import Demo
from harness.ports import unused_port
from harness.silent import Silent
from harness.waiting import wait_until


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with Demo() as running:
        yield running


@pytest.fixture(scope="module")
def options(demo: Demo) -> dict[str, Any]:
    return {
        "server": f"hidden.test:{demo.server.address[1]}/ws",
        "token": demo.token,
        "doh_server": demo.resolver_url,
        "doh_ip": "127.0.0.1",
        "ca_file": demo.ca_file,
        "cache_dir": "",
    }


@pytest.fixture(scope="module")
def silent() -> Iterator[Silent]:
    with Silent() as target:
        yield target


@pytest.fixture
def unreachable() -> Iterator[dict[str, Any]]:
    """Options for a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield {
            "server": f"hidden.test:{server.getsockname()[1]}/ws",
            "token": "x",
            "ech": False,
            "server_ip": "127.0.0.1",
            "cache_dir": "",
            "connect": "lazy",
        }


@pytest.mark.parametrize("yamux", [True, False])
def test_the_timeout_is_for_all_of_the_opening(
    demo: Demo, options: dict[str, Any], silent: Silent, yamux: bool
) -> None:
    with Tunnel(**options, yamux=yamux) as tunnel:
        started = time.monotonic()
        with pytest.raises(TargetTimeout) as caught:
            tunnel.create_connection(silent.address, timeout=0.5)
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, TargetError)
        # The server's own limit is 10 s.
        assert time.monotonic() - started < 5
        wait_until(lambda: demo.server.snapshot().streams == 0, "the stream was reset")


def test_without_a_session_the_timeout_says_what_stands_in_the_way(unreachable: dict[str, Any]) -> None:
    with Tunnel(**unreachable) as tunnel:
        with pytest.raises(SessionTimeout, match="no session") as caught:
            tunnel.create_connection(("a.test", 80), timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(SessionTimeout):
            tunnel.wait_ready(0.1)
        with pytest.raises(SessionTimeout):
            tunnel.create_connection(("a.test", 80), timeout=0)


def test_asyncio_has_the_same_deadline(options: dict[str, Any], silent: Silent) -> None:
    async def use() -> None:
        async with aio.Tunnel(**options) as tunnel:
            with pytest.raises(TargetTimeout):
                await tunnel.open_connection(*silent.address, timeout=0.3)

    asyncio.run(use())


@pytest.mark.parametrize("yamux", [True, False])
def test_cancelled_openings_hold_up_nobody_and_leave_nothing(
    demo: Demo, options: dict[str, Any], silent: Silent, yamux: bool
) -> None:
    # More than a server connects at a time to one address for a session, many times over.
    count = 2000 if yamux else 40

    async def use() -> None:
        async with aio.Tunnel(**options, yamux=yamux, max_connections=5000) as tunnel:
            threads = threading.active_count()
            opening = [asyncio.create_task(tunnel.open_connection(*silent.address, timeout=60)) for _ in range(count)]
            async with asyncio.timeout(10):
                while demo.server.snapshot().streams < count:
                    await asyncio.sleep(0.02)
            assert threading.active_count() <= threads + 1
            reader, writer = await tunnel.open_connection(*demo.target_address, timeout=30)
            writer.write(b"GET /bytes/10 HTTP/1.0\r\n\r\n")
            assert b"200" in await reader.read()
            writer.close()
            for task in opening:
                task.cancel()
            ended = await asyncio.gather(*opening, return_exceptions=True)
            assert {type(error) for error in ended} == {asyncio.CancelledError}
            while demo.server.snapshot().streams or tunnel.snapshot().connections:
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(use(), 60))


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_pending_openings_end_with_the_tunnel(options: dict[str, Any], silent: Silent, grace: float) -> None:
    tunnel = Tunnel(**options)
    caught: list[BaseException] = []

    def open_one() -> None:
        try:
            tunnel.create_connection(silent.address, timeout=60)
        except BaseException as error:
            caught.append(error)

    with tunnel:
        threads = [threading.Thread(target=open_one) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_until(lambda: tunnel.snapshot().connections == 5, "five openings")
        tunnel.close(grace)
        for thread in threads:
            thread.join(10)
    assert [type(error) for error in caught] == [EngineClosed] * 5


def test_many_failing_opens_keep_nothing(unreachable: dict[str, Any]) -> None:
    port = unused_port()
    with Tunnel(**{**unreachable, "server": f"hidden.test:{port}/ws"}) as tunnel:

        class Local:
            """Something that the frame of a caller holds."""

        def fail() -> tuple["weakref.ref[Local]", BaseException]:
            local = Local()
            with pytest.raises(OSError, match="refused") as caught:
                tunnel.create_connection(("a.test", 80), timeout=5)
            return weakref.ref(local), caught.value

        wait_until(lambda: tunnel.status().phase == "waiting", "the server cannot be reached")
        kept, errors = [], set()
        for _ in range(200):
            reference, error = fail()
            kept.append(reference)
            errors.add(id(error))
            depth = len(traceback.extract_tb(error.__traceback__))
            assert depth < 10
            error.__traceback__ = None
        del error
        gc.collect()
        assert [reference() for reference in kept] == [None] * 200


def test_too_many_connections_is_said_so(demo: Demo, options: dict[str, Any]) -> None:
    with (
        Tunnel(**options, max_connections=1) as tunnel,
        tunnel.create_connection(demo.target_address, timeout=10),
        pytest.raises(SessionError) as caught,
    ):
        tunnel.create_connection(demo.target_address, timeout=10)
    assert caught.value.code == "too-many-connections"


@pytest.mark.parametrize(
    "address", [("::1", 80, 0, 0), ("[::1]", "80"), (b"a.test", 80), ("bücher.test", 80), ("127.0.0.1", 1)]
)
def test_targets_may_be_written_as_for_the_standard_library(tunnel: Tunnel, address: tuple[Any, ...]) -> None:
    with pytest.raises(TargetError) as caught:
        tunnel.create_connection(address, 10, None)
    assert caught.value.code in ("target-refused", "target-not-found", "target-failed", "target-unreachable")


@pytest.mark.parametrize("address", [("a.test", 70000), ("a.test", "http"), ("a.test",), (1, 2), "a.test:80"])
def test_targets_that_cannot_be_are_refused(tunnel: Tunnel, address: Any) -> None:
    with pytest.raises(TargetError) as caught:
        tunnel.create_connection(address, 10)
    assert caught.value.code == "target-invalid"


@pytest.fixture(scope="module")
def tunnel(options: dict[str, Any]) -> Iterator[Tunnel]:
    with Tunnel(**options) as running:
        yield running


def test_a_service_can_wait_for_its_server_to_come_up(demo: Demo, options: dict[str, Any]) -> None:
    address = ("127.0.0.1", unused_port())
    lazy = {**options, "server": f"hidden.test:{address[1]}/ws", "ech": False, "server_ip": "127.0.0.1"}
    with Tunnel(**lazy, connect="lazy") as tunnel:
        with pytest.raises(ConnectionError):
            tunnel.wait_ready(10)
        with pytest.raises(SessionTimeout):
            tunnel.wait_ready(0.3, patient=True)

        def serve() -> None:
            with socket.create_server(address) as listener:
                listener.settimeout(30)
                client, _ = listener.accept()
                with client, socket.create_connection(demo.server.address) as server:
                    for source, target in ((client, server), (server, client)):
                        threading.Thread(target=pump, args=(source, target), daemon=True).start()
                    up.wait(30)

        up = threading.Event()
        relay = threading.Thread(target=serve)
        relay.start()
        tunnel.wait_ready(30, patient=True)
        up.set()
        relay.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
    except OSError:
        pass


def test_states_are_told_as_they_change(options: dict[str, Any]) -> None:
    tunnel = Tunnel(**options, connect="lazy")
    with tunnel:
        seen = []
        for state in tunnel.states():
            seen.append(state.phase)
            if state.phase == "up":
                tunnel.close()
        assert seen[-2:] == ["up", "stopped"]

    async def use() -> list[str]:
        phases: list[str] = []
        async with aio.Tunnel(**options, connect="lazy") as tunnel:
            async for state in tunnel.states():
                phases.append(state.phase)
                if state.phase == "up":
                    await tunnel.close()
        return phases

    assert asyncio.run(asyncio.wait_for(use(), 30))[-2:] == ["up", "stopped"]


def test_a_listener_can_be_closed(demo: Demo, options: dict[str, Any]) -> None:
    with Tunnel(**options) as tunnel:
        with tunnel.listen("127.0.0.1") as listener:
            assert tunnel.addresses == (listener.address,)
            assert str(listener.port) in repr(listener)
            socket.create_connection(listener.address, 5).close()
        assert not tunnel.addresses
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.address, 5)
        listener.close()

    async def use() -> None:
        async with aio.Tunnel(**options) as tunnel, await tunnel.listen("127.0.0.1") as listener:
            assert tunnel.addresses == (listener.address,)

    asyncio.run(use())


def test_objects_say_what_they_are(demo: Demo, options: dict[str, Any]) -> None:
    tunnel = Tunnel(**options)
    assert repr(tunnel).endswith("not started>")
    with tunnel:
        assert "up, sessions: 1" in repr(tunnel)
        assert demo.token not in repr(tunnel)
        with tunnel.create_connection(demo.target_address) as stream:
            assert repr(stream) == f"<StreamSocket to 127.0.0.1:{demo.target_address[1]}>"
    assert repr(tunnel).endswith("closed>")


def test_a_tunnel_that_is_entered_twice_ends_with_the_last_exit(demo: Demo, options: dict[str, Any]) -> None:
    with Tunnel(**options) as tunnel:
        with tunnel:
            pass
        tunnel.create_connection(demo.target_address, timeout=10).close()
