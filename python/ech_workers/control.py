"""The control socket: how a running proxy or server is asked and told things by its own user.

A Unix socket in the user's runtime directory, mode 0600; whoever connects must be the same user, or root. A request is one
JSON object a line (``{"verb": "status"}``), an answer is one or several: ``{"ok": ...}``, the last one with ``"end": true``,
or ``{"error": ...}``. Requests come one after the other; a verb that goes on without end (``logs``) ends with the connection.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ech_workers.errors import ListenError, TunnelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["ControlClient", "ControlError", "ControlSocket", "default_path", "find"]

log = logging.getLogger("ech_workers")

CONNECTIONS = 16
"""At a time; more are closed at once."""

REQUEST_LIMIT = 1 << 16
"""Bytes of a request."""

SEND_TIMEOUT = 10.0
"""Seconds after which a reader that takes nothing is let go."""


class ControlError(TunnelError):
    """There is nothing to ask, or it refused."""

    default_layer = "control"
    default_code = "control-failed"
    exit_code = 1


def directory(variables: Mapping[str, str] | None = None) -> Path:
    """The user's runtime directory: that of XDG, or one of our own below /run or the temporary directory."""
    environ = os.environ if variables is None else variables
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "ech-workers"
    if os.getuid() == 0:
        return Path("/run/ech-workers")
    return Path(environ.get("TMPDIR") or "/tmp") / f"ech-workers-{os.getuid()}"  # noqa: S108 (made and checked below)


def default_path(role: str) -> Path:
    """Where a proxy or a server that is started now puts its socket: another one than those of its kind that run."""
    folder = directory()
    path = folder / f"{role}.sock"
    return folder / f"{role}-{os.getpid()}.sock" if _is_answered(path) else path


def find(role: str) -> list[Path]:
    """The sockets of those that run, the first one first."""
    folder = directory()
    paths = [folder / f"{role}.sock", *sorted(folder.glob(f"{role}-*.sock"))]
    return [path for path in paths if _is_answered(path)]


def _is_answered(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            probe.connect(str(path))
    except OSError:
        return False
    return True


class ControlSocket:
    """The open socket, and a thread for each connection. ``close`` must be called in the end."""

    def __init__(self, path: Path, verbs: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Any]]]) -> None:
        """Opens the socket; served from then on. A socket that nobody answers is replaced. Raises ListenError."""
        self.path = path
        self._verbs = verbs
        self._stopping = False
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            _prepare(path)
            self._listener.bind(str(path))
            # Nobody can connect before the listen.
            path.chmod(0o600)
            self._identity = _identity(path)
            self._listener.listen(CONNECTIONS)
        except OSError as error:
            self._listener.close()
            why = "another process answers there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ListenError(
                f"the control socket {path}: {why}", code="control-failed", advice="name another one with --control"
            ) from None
        self._thread = threading.Thread(target=self._accept, name="ech-workers-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes the socket and its connections, and removes its file."""
        self._stopping = True
        with contextlib.suppress(OSError):
            # Wakes the accept that is waiting; a close alone would not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        # Only our own file: another process may have put one in its place.
        if _identity(self.path) == self._identity:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._stopping:
                    return
                # Out of descriptors, for example: it must not turn into a busy loop.
                threading.Event().wait(0.5)
                continue
            with self._lock:
                full = len(self._connections) >= CONNECTIONS
                if not full:
                    self._connections.add(connection)
            if full or not _is_ours(connection):
                self._drop(connection)
                continue
            threading.Thread(target=self._serve, args=(connection,), name="ech-workers-control", daemon=True).start()

    def _drop(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            for line in _requests(connection):
                self._answer(connection, line)
        except OSError:
            pass  # the other side has gone
        except Exception:
            log.exception("the control socket failed; the rest goes on")
        finally:
            self._drop(connection)

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            verb = self._verbs.get(request["verb"])
        except (ValueError, TypeError, KeyError):
            _send(connection, {"error": "that is no request", "end": True})
            return
        if verb is None:
            _send(connection, {"error": f"there is no {request['verb']!r} here", "end": True})
            return
        connection.settimeout(SEND_TIMEOUT)
        try:
            for item in verb(request):
                if self._stopping:
                    break
                _send(connection, {"ok": item})
        except TunnelError as error:
            _send(connection, {"error": error.line(), "end": True})
        else:
            _send(connection, {"end": True})
        connection.settimeout(None)


def _requests(connection: socket.socket) -> Iterator[bytes]:
    with connection.makefile("rb") as stream:
        while line := stream.readline(REQUEST_LIMIT):
            yield line


def _send(connection: socket.socket, answer: object) -> None:
    connection.sendall(msgspec.json.encode(answer) + b"\n")


def _prepare(path: Path) -> None:
    """Makes the directory if it is not there, and takes away a socket that nobody answers. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.stat()
    if status.st_uid not in (os.getuid(), 0) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
        raise PermissionError(1, f"{path.parent} belongs to somebody else, or others can write to it")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _is_answered(path):
            path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end is the same user, or root (unix(7), SO_PEERCRED)."""
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return False
    _, user, _ = struct.unpack("3i", found)
    return user in (os.getuid(), 0)


class ControlClient:
    """A connection to a control socket."""

    def __init__(self, path: Path) -> None:
        """Raises ControlError."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SEND_TIMEOUT)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ControlError(
                f"nothing answers at {path}: {error.strerror}",
                advice="start it first, or name its socket with --control",
            ) from None
        self._stream = self._socket.makefile("rb")

    def ask(self, verb: str, *, timeout: float | None = 30.0, **arguments: Any) -> Iterator[Any]:
        """Every answer to a request. timeout: seconds without one. Raises ControlError."""
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            for line in self._stream:
                answer = json.loads(line)
                if "error" in answer:
                    raise ControlError(answer["error"].removeprefix("control: "), advice="")
                if "ok" in answer:
                    yield answer["ok"]
                if answer.get("end"):
                    return
        except ControlError:
            # An OSError too, as every error of the package.
            raise
        except (BrokenPipeError, ConnectionResetError):
            pass
        except (OSError, ValueError) as error:
            raise ControlError(f"the connection broke: {error}") from None
        raise ControlError("it has ended", code="control-ended", advice="")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
