"""The control socket: who may use it, and what it does with what it is sent."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import control
from ech_workers.control import ControlClient, ControlError, ControlSocket
from ech_workers.errors import ConfigError, ListenError
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def refuse(request: Mapping[str, Any]) -> Iterator[Any]:
    raise ConfigError("it is wrong", advice="")
    yield


VERBS = {
    "echo": lambda request: iter([request["text"]]),
    "count": lambda request: iter(range(request["to"])),
    "refuse": refuse,
}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[ControlSocket]:
    made = ControlSocket(tmp_path / "run" / "proxy.sock", VERBS)
    yield made
    made.close()
    assert not made.path.exists()


def test_several_requests_are_answered_on_one_connection(opened: ControlSocket) -> None:
    with ControlClient(opened.path) as client:
        assert list(client.ask("echo", text="hello")) == ["hello"]
        assert list(client.ask("count", to=3)) == [0, 1, 2]
        with pytest.raises(ControlError, match="config: it is wrong"):
            list(client.ask("refuse"))
        with pytest.raises(ControlError, match="there is no 'dance' here"):
            list(client.ask("dance"))
        assert list(client.ask("echo", text="still there")) == ["still there"]


def test_only_the_owner_can_reach_it(opened: ControlSocket) -> None:
    assert opened.path.stat().st_mode & 0o777 == 0o600
    assert opened.path.parent.stat().st_mode & 0o777 == 0o700


def test_another_user_is_let_go_even_if_the_mode_lets_him_in(opened: ControlSocket) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    for path in (opened.path, *list(opened.path.parents)[:-1]):
        path.chmod(path.stat().st_mode | 0o777)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(5)
                stranger.connect(str(opened.path))
                stranger.sendall(b'{"verb": "echo", "text": "x"}\n')
                code = 0 if stranger.recv(100) == b"" else 2
        except ConnectionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "sent", [b"\n", b"[]\n", b"{}\n", b'{"verb": []}\n', b"\xff\xfe\n", b'{"verb"' + b"x" * 70_000]
)
def test_what_is_no_request_is_answered_and_harms_nothing(opened: ControlSocket, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(opened.path))
        stranger.sendall(sent)
        stranger.shutdown(socket.SHUT_WR)
        answer = stranger.makefile("rb").readline()
    assert "error" in json.loads(answer)
    with ControlClient(opened.path) as client:
        assert list(client.ask("echo", text="x")) == ["x"]


def test_more_than_enough_connections_are_let_go(opened: ControlSocket) -> None:
    clients = [ControlClient(opened.path) for _ in range(control.CONNECTIONS)]
    for client in clients:
        list(client.ask("echo", text="x"))
    with pytest.raises(ControlError), ControlClient(opened.path) as one_more:
        list(one_more.ask("echo", text="x"))
    for client in clients:
        client.close()

    def answers() -> bool:
        try:
            with ControlClient(opened.path) as client:
                return list(client.ask("echo", text="x")) == ["x"]
        except ControlError:
            return False

    wait_until(answers, "a place to be free again")


def test_a_socket_that_nobody_answers_is_replaced_and_one_that_is_answered_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "proxy.sock"
    first = ControlSocket(path, VERBS)
    with pytest.raises(ListenError, match="another process answers there"):
        ControlSocket(path, VERBS)
    first.close()
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    ControlSocket(path, VERBS).close()


def test_the_end_does_not_wait_for_who_is_connected(tmp_path: Path) -> None:
    def forever(request: Mapping[str, Any]) -> Iterator[Any]:
        while True:
            threading.Event().wait(0.05)
            yield "x"

    made = ControlSocket(tmp_path / "run" / "x.sock", {"forever": forever})
    client = ControlClient(made.path)
    answers = client.ask("forever")
    assert next(answers) == "x"
    made.close()
    with pytest.raises(ControlError):
        list(answers)
    client.close()


def test_a_directory_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ListenError, match="others can write to it"):
        ControlSocket(folder / "x.sock", VERBS)


def test_the_place_is_the_users_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert control.default_path("proxy") == tmp_path / "ech-workers" / "proxy.sock"
    assert control.find("proxy") == []
    first = ControlSocket(control.default_path("proxy"), VERBS)
    second = ControlSocket(control.default_path("proxy"), VERBS)
    assert second.path.name == f"proxy-{os.getpid()}.sock"
    assert control.find("proxy") == [first.path, second.path]
    first.close()
    assert control.find("proxy") == [second.path]
    second.close()
