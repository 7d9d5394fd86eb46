"""``ech-workers keygen``."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import sys
import textwrap
import time
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from ech_workers import _native, files
from ech_workers.cli.options import SECONDS
from ech_workers.cli.share import show_code
from ech_workers.config import ClientConfig, ServerAddress
from ech_workers.errors import ConfigError
from ech_workers.options import link as links

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option("--public-name", required=True, metavar="NAME", help="The name that the network will see.")
@click.option("--out", required=True, metavar="DIR", help="The directory for the key file; made if it is not there.")
@click.option(
    "--name", metavar="HOST[:PORT]", help="The server's own name, for the DNS record; default: @, the zone itself."
)
@click.option(
    "--maximum-name-length",
    type=click.IntRange(0, 255),
    default=64,
    show_default=True,
    metavar="N",
    help="Names up to this length cannot be told apart by the hello's size (RFC 9849 section 4).",
)
@click.option(
    "--rotate",
    is_flag=True,
    help="The new key takes over, and those of its public name that were replaced longer than --overlap ago are removed.",
)
@click.option(
    "--overlap",
    type=SECONDS,
    default="24h",
    show_default=True,
    metavar="TIME",
    help="With --rotate: how long a key goes on to decrypt after its successor was made.",
)
@click.option(
    "--server",
    metavar="HOST[:PORT]/PATH",
    help="Also print the link for clients of this server, and on a terminal its QR code. Needs --token-file.",
)
@click.option(
    "--token-file", metavar="FILE", help="For the link: a file with the token. Whoever has the link has it too."
)
@click.option("--server-ip", metavar="IP", multiple=True, help="For the link: an address of the server.")
@click.option("--ca-file", metavar="FILE", help="For the link: authorities of your own (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def keygen(
    public_name: str,
    out: str,
    name: str | None,
    maximum_name_length: int,
    rotate: bool,
    overlap: float,
    server: str | None,
    token_file: str | None,
    server_ip: tuple[str, ...],
    ca_file: str | None,
    as_json: bool,
) -> None:
    """Make an ECH key: DIR/ID.pem (RFC 9934) for the server alone, DIR/ID.ech for clients, and what to publish in DNS.

    The server hands out the newest key of a public name at once; older ones go on to decrypt while their files are there.
    """
    directory = files.expand(out, "--out")
    # What is wrong with it is said before there is a key.
    client = _client(server, token_file, server_ip, ca_file)
    number, configs, file, public_file = _write(directory, public_name, maximum_name_length)
    rotation = _rotate(directory, public_name, overlap) if rotate else None
    encoded = base64.b64encode(configs).decode()
    record = _record(name, encoded)
    link = None if client is None else links.make(msgspec.structs.replace(client, ech_config=configs))
    if as_json:
        made: dict[str, object] = {
            "config_id": number,
            "public_name": public_name,
            "file": str(file),
            "client_file": str(public_file),
            "ech_config_list": encoded,
            "https_record": record,
        }
        if link is not None:
            made["link"] = link
        if rotation is not None:
            made["kept"] = [{"file": str(path), "seconds": max(0, round(left))} for path, left in rotation.kept]
            made["removed"] = [str(path) for path in rotation.removed]
        click.echo(json.dumps(made))
        return
    click.echo(f"key file           {file} (for the server alone)")
    click.echo(f"client file        {public_file} (--ech-config @FILE)")
    click.echo(f"ECH configuration  {encoded}\nDNS record         {record}")
    share = f"ech-workers share --server {name or 'HOST'}/PATH --token-file FILE --ech-config @{public_file}"
    click.echo(f"to share           {link or share}")
    if rotation is not None:
        for path, left in rotation.kept:
            when = f"removed by a rotation in {_duration(left)} or later" if left > 0 else "yours to remove"
            click.echo(f"still decrypts     {path}, {when}")
        for path in rotation.removed:
            click.echo(f"removed            {path}")
    if link is not None and sys.stdout.isatty():
        show_code(link)


def _client(
    server: str | None, token_file: str | None, addresses: tuple[str, ...], ca_file: str | None
) -> ClientConfig | None:
    """What a client of the server needs but the key; None without a server. Raises ConfigError."""
    parts = {"--token-file": token_file, "--server-ip": addresses, "--ca-file": ca_file}
    if server is None:
        for option, value in parts.items():
            if value:
                raise ConfigError("is for the link, which needs a server", option=option, advice="give --server too")
        return None
    if token_file is None:
        raise ConfigError("a link holds the server's token", option="--server", advice="give --token-file too")
    return ClientConfig.build(server=server, token_file=token_file, server_ip=addresses, ca_file=ca_file)


class _Rotation(NamedTuple):
    kept: list[tuple[Path, float]]
    """Older keys, and for how many more seconds they stay; not above 0 if they are another maker's to remove."""
    removed: list[Path]


def _rotate(directory: Path, public_name: str, overlap: float) -> _Rotation:
    """Removes the keys of this public name whose successor is older than the overlap.

    Only files that this command wrote, which bear their id as name: another maker's are its own to remove.
    """
    rotation = _Rotation([], [])
    now = time.time()
    try:
        keys = sorted(_keys_of(directory, public_name), key=lambda key: key[1])
        for (path, _), (_, replaced) in itertools.pairwise(keys):
            left = overlap - (now - replaced / 1e9)
            if left <= 0 and path.stem.isdecimal():
                path.unlink(missing_ok=True)
                path.with_suffix(".ech").unlink(missing_ok=True)
                rotation.removed.append(path)
            else:
                rotation.kept.append((path, left))
    except OSError as error:
        raise ConfigError(f"cannot remove old keys from {directory}: {error.strerror}", option="--out") from None
    return rotation


def _keys_of(directory: Path, public_name: str) -> list[tuple[Path, int]]:
    """The key files that have this public name and no other, and when each was written (nanoseconds)."""
    found = []
    for path in directory.glob("*.pem"):
        try:
            has_key, configs = _native.read_ech_pem(path.read_bytes())
            names = {entry.public_name for entry in _native.parse_ech_config_list(configs)}
            if has_key and names == {public_name}:
                found.append((path, path.stat().st_mtime_ns))
        except (OSError, ValueError):
            continue
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _write(directory: Path, public_name: str, maximum_name_length: int) -> tuple[int, bytes, Path, Path]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = {path.stem for path in directory.glob("*.pem")} | _config_ids(directory)
        free = [number for number in range(256) if str(number) not in taken]
        if not free:
            raise ConfigError(
                f"{directory} holds a key for each of the 256 ids", option="--out", advice="remove old ones"
            )
        # At random, so that a new key seldom has the id of one that clients still remember (RFC 9849 section 4).
        number = secrets.choice(free)
        pem, configs = _native.generate_ech_key(number, public_name, maximum_name_length)
        file = directory / f"{number}.pem"
        # Written aside and linked into place: a server that watches the directory never sees half a file.
        aside = directory / f".{number}.{secrets.token_hex(4)}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(pem)
                stream.flush()
                os.fsync(stream.fileno())
            aside.chmod(0o600)
            # The newest is what the server hands out: also beside a file whose time is in the future.
            newest = max((modified for _, modified in _keys_of(directory, public_name)), default=0)
            if aside.stat().st_mtime_ns <= newest:
                os.utime(aside, ns=(newest + 1, newest + 1))
            # First what is harmless alone: from the link on the server uses the key.
            public_file = directory / f"{number}.ech"
            public_file.write_bytes(_public_half(configs))
            os.link(aside, file)
        finally:
            aside.unlink()
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}", option="--out") from None
    except ValueError as error:
        raise ConfigError(str(error), option="--public-name") from None
    return number, configs, file, public_file


def _public_half(configs: bytes) -> bytes:
    """The configuration alone, in the form of RFC 9934, with the lines of RFC 7468 section 2."""
    lines = textwrap.wrap(base64.b64encode(configs).decode(), 64)
    return "\n".join(["-----BEGIN ECHCONFIG-----", *lines, "-----END ECHCONFIG-----", ""]).encode()


def _config_ids(directory: Path) -> set[str]:
    """The ids in use by files of other makers, which may have any name."""
    used: set[str] = set()
    for path in directory.glob("*.pem"):
        try:
            entries = _native.parse_ech_config_list(_native.read_ech_pem(path.read_bytes())[1])
        except (OSError, ValueError):
            continue
        used.update(str(entry.config_id) for entry in entries if entry.config_id is not None)
    return used


def _record(name: str | None, encoded: str) -> str:
    if name is None:
        return f'@ 300 IN HTTPS 1 . ech="{encoded}"'
    server = ServerAddress.parse(name, "--name")
    if server.port == 443:
        return f'{server.host}. 300 IN HTTPS 1 . ech="{encoded}"'
    # RFC 9460 section 9.1: another port has a record of its own, whose TargetName leads back to the name.
    return f'_{server.port}._https.{server.host}. 300 IN HTTPS 1 {server.host}. port={server.port} ech="{encoded}"'
