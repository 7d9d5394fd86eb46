"""The files that options name: read with a limit, whatever an editor made of their text, and refused by file and line."""

from __future__ import annotations

import binascii
import codecs
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_pem", "expand", "lines", "read", "text_of"]

# Larger than any certificate bundle in use (the Mozilla set is about 230 KB).
LIMIT = 4 << 20

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def expand(path: str | Path, option: str) -> Path:
    """The path with ``~`` and ``~user`` replaced. Raises ConfigError for a user without a home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"the home directory in {str(path)!r} is not known", option=option, advice="write the whole path"
        ) from None


def read(file: Path, option: str, limit: int = LIMIT) -> bytes:
    """The bytes of a file, ``limit`` at most. Raises ConfigError."""
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL in it.
        why = (error.strerror or os.strerror(error.errno or 0)) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read {file}: {why}", option=option) from None
    if len(data) > limit:
        raise ConfigError(f"{file} is larger than {limit >> 20} MiB", option=option)
    return data


def text_of(data: bytes, file: Path, option: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as Windows editors write it.

    Raises ConfigError that names the line which is neither."""
    mark, encoding = next((form for form in _MARKS if data.startswith(form[0])), (b"", "utf-8"))
    data = data.removeprefix(mark)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{file}, line {line}: this is no text in UTF-8", option=option, advice="save the file as UTF-8"
        ) from None


def lines(file: Path, option: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers: without empty ones and comments (``#``). Raises ConfigError."""
    for number, line in enumerate(text_of(read(file, option), file, option).splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, line


_PEM = re.compile(rb"-----(BEGIN|END) ([^-\n]*)-----")


def check_pem(data: bytes, file: Path, option: str) -> None:
    """Raises ConfigError that names the line of a PEM file (RFC 7468) at which it is damaged."""
    block: tuple[str, int] | None = None
    body = b""
    for number, line in enumerate(data.splitlines(), 1):
        line = line.strip()
        mark = _PEM.fullmatch(line)
        if mark is None:
            # A field of an encrypted key's head (RFC 1421) is no base64.
            if block is not None and b":" not in line and not line.startswith(b"-----"):
                if re.fullmatch(rb"[A-Za-z0-9+/=]*", line) is None:
                    raise ConfigError(f"{file}, line {number}: this is no base64", option=option)
                body += line
            continue
        kind, label = mark[1].decode(), mark[2].decode("ascii", errors="replace")
        if kind == "BEGIN":
            if block is not None:
                raise ConfigError(f"{file}, line {number}: the {block[0]} of line {block[1]} has no end", option=option)
            block, body = (label, number), b""
        elif block is None or block[0] != label:
            raise ConfigError(f"{file}, line {number}: this end has no beginning", option=option)
        else:
            try:
                binascii.a2b_base64(body)
            except binascii.Error:
                raise ConfigError(
                    f"{file}: the {label} of line {block[1]} is not whole", option=option, advice="copy the file again"
                ) from None
            block = None
    if block is not None:
        raise ConfigError(
            f"{file}: the {block[0]} of line {block[1]} has no end", option=option, advice="copy the file again"
        )
