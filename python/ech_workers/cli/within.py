"""``ech-workers run``, ``env`` and ``connect``: programs that use a running proxy."""

from __future__ import annotations

import os
import selectors
import shlex
import socket
import sys
from pathlib import Path
from urllib.parse import quote

import click

from ech_workers import control
from ech_workers.errors import ConfigError, ConnectError

_proxy = click.option(
    "--proxy", "address", metavar="ADDR:PORT", envvar="ECH_WORKERS_PROXY", show_envvar=True, help="The port, if it is not that of the running proxy."
)  # fmt: skip
_username = click.option(
    "--username", metavar="TEXT", envvar="ECH_WORKERS_USERNAME", help="What the port wants, with --password."
)
_password = click.option(
    "--password", metavar="TEXT", envvar="ECH_WORKERS_PASSWORD", help="Better set in the environment."
)


def _address(given: str | None) -> tuple[str, int]:
    """The proxy's port. Raises ConfigError and ControlError."""
    from ech_workers.config import ListenAddress

    if given is not None:
        address = ListenAddress.parse(given, "--proxy")
        return ("127.0.0.1" if address.host == "localhost" else address.host), address.port
    found = control.find("proxy")
    if not found:
        raise control.ControlError(
            "no proxy of yours is running",
            code="control-none",
            advice="start it with `ech-workers proxy`, or say where it is with --proxy",
        )
    with control.ControlClient(Path(found[0])) as client:
        (status,) = client.ask("status")
    if not status["facts"]["listening"]:
        raise ConfigError("the running proxy has no port", option="--proxy")
    address = ListenAddress.parse(status["facts"]["listening"][0], "--proxy")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 (where it listens on all)
    return host, address.port


def variables(address: tuple[str, int], username: str | None, password: str | None) -> dict[str, str]:
    """The environment by which programs find the proxy. socks5h: names are resolved by the server, never here."""
    from ech_workers.config import authority

    user = f"{quote(username, safe='')}:{quote(password or '', safe='')}@" if username else ""
    place = f"{user}{authority(*address)}"
    found = {"http_proxy": f"http://{place}", "https_proxy": f"http://{place}", "all_proxy": f"socks5h://{place}"}
    # Some programs read one spelling, some the other. HTTP_PROXY is left out: what runs as a CGI would take it from a
    # stranger's request header.
    return {**found, "HTTPS_PROXY": found["https_proxy"], "ALL_PROXY": found["all_proxy"]}


@click.command(context_settings={"ignore_unknown_options": True})
@_proxy
@_username
@_password
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(address: str | None, username: str | None, password: str | None, command: tuple[str, ...]) -> None:
    """Start COMMAND with the variables set by which programs find the proxy: ech-workers run -- git pull.

    A program that does not look at them goes its own way.
    """
    environment = {**os.environ, **variables(_address(address), username, password)}
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 (this is what it is for)
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]}: {error.strerror}", option="COMMAND") from None


@click.command()
@_proxy
@_username
@_password
def env(address: str | None, username: str | None, password: str | None) -> None:
    """Print these variables for a shell: eval "$(ech-workers env)"."""
    for name, value in variables(_address(address), username, password).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@click.command()
@_proxy
@_username
@_password
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
def connect(address: str | None, username: str | None, password: str | None, host: str, port: int) -> int:
    """Connect standard input and output with HOST:PORT through the proxy.

    For ssh: ProxyCommand ech-workers connect %h %p
    """
    connection = _connected(_address(address), username, password, host, port)
    with connection:
        _relay(connection)
    return 0


def _connected(
    proxy: tuple[str, int], username: str | None, password: str | None, host: str, port: int
) -> socket.socket:
    """By SOCKS5 (RFC 1928, RFC 1929). Raises ConnectError."""
    from ech_workers.names import ascii_name

    try:
        name = (host if ":" in host else ascii_name(host)).encode("ascii")
    except ValueError as error:
        raise ConfigError(str(error), option="HOST") from None
    if not 1 <= len(name) <= 255:
        raise ConfigError(f"{host!r} is no host name", option="HOST")
    try:
        connection = socket.create_connection(proxy, 30)
    except OSError as error:
        raise ConnectError(
            f"the proxy at {proxy[0]}:{proxy[1]}: {error.strerror or error}", advice="start it with `ech-workers proxy`"
        ) from None
    try:
        stream = connection.makefile("rb", buffering=0)
        connection.sendall(b"\x05\x01\x02" if username else b"\x05\x01\x00")
        method = _exactly(stream, 2)[1]
        if method == 2 and username is not None:
            secret = (username.encode(), (password or "").encode())
            connection.sendall(b"\x01" + b"".join(bytes((len(part),)) + part for part in secret))
            if _exactly(stream, 2)[1] != 0:
                raise ConnectError("the proxy does not accept the user name and the password", advice="")
        elif method != 0:
            raise ConnectError("the proxy wants a user name", advice="give --username and --password")
        connection.sendall(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big"))
        _, code, _, kind = _exactly(stream, 4)
        if code != 0:
            raise ConnectError(f"{host}:{port}: {_REPLIES.get(code, f'the proxy answered {code}')}", advice="")
        length = {1: 4, 4: 16}.get(kind)
        _exactly(stream, (_exactly(stream, 1)[0] if length is None else length) + 2)
        connection.settimeout(None)
    except ConnectError:
        # An OSError too, as every error of the package.
        connection.close()
        raise
    except (OSError, EOFError) as error:
        connection.close()
        raise ConnectError(
            f"the proxy at {proxy[0]}:{proxy[1]}: {error or 'it closed the connection'}", advice=""
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


# RFC 1928 section 6.
_REPLIES = {
    1: "the proxy failed",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "timed out",
    7: "the proxy does not know this command",
    8: "the proxy does not know this kind of address",
}


def _exactly(stream: socket.SocketIO, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _relay(connection: socket.socket) -> None:
    """Until the other side has ended; the end of the input is passed on."""
    sys.stdout.flush()
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    try:
        selector.register(0, selectors.EVENT_READ)
    except PermissionError:
        # A file, which is always readable.
        while data := os.read(0, 1 << 16):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is connection:
                    data = connection.recv(1 << 16)
                    if not data:
                        return
                    _write(data)
                    continue
                data = os.read(0, 1 << 16)
                if data:
                    connection.sendall(data)
                else:
                    selector.unregister(0)
                    connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        raise ConnectError("the connection was reset", advice="") from None


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
