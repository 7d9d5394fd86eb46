"""What proves who somebody is: tokens, passwords, ECH configurations and authorities, from options and files.

No message has a secret in it.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from ech_workers import files
from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "authorities",
    "check_token",
    "credential",
    "ech_config_list",
    "labelled_tokens",
    "short_tokens",
    "token_labels",
    "token_of",
]


def check_token(text: str, option: str, where: str = "") -> str:
    token = text.strip()
    if len(token) > 2 and token[0] == token[-1] and token[0] in "\"'":
        raise ConfigError(
            f"{where}the token is in quotes", option=option, code="token-invalid", advice="write it without them"
        )
    if not token or len(token) > 512 or any(not 0x21 <= ord(character) <= 0x7E for character in token) or "," in token:
        # The token travels as the one value of Sec-WebSocket-Protocol: a comma or a space would make it a list.
        raise ConfigError(
            f"{where}a token is 1 to 512 visible ASCII characters without space and comma",
            option=option,
            code="token-invalid",
        )
    return token


def labelled_tokens(file: Path) -> list[tuple[str, str]]:
    """The tokens of a file, each with its label: what stands behind it as a comment."""
    option = "--token-file"
    found = []
    for number, line in files.lines(file, option):
        # A token has no space in it, but may have a #.
        token, _, label = line.partition(" #")
        found.append((check_token(token, option, f"{file}, line {number}: "), " ".join(label.split())))
    return found


def token_labels(tokens: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    """One for each token, and no two alike: the metrics are by them."""
    labels: dict[str, None] = {}
    for number, token in enumerate(tokens, 1):
        label = given.get(token) or f"token {number}"
        labels[label if label not in labels else f"{label} ({number})"] = None
    return tuple(labels)


# Twelve characters of base64 are 72 bits.
_SHORT_TOKEN = 12


def short_tokens(labelled: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What to say of tokens, each with its label, that somebody could guess."""
    for token, label in labelled:
        if len(token) < _SHORT_TOKEN:
            length = "1 character" if len(token) == 1 else f"{len(token)} characters"
            yield f"{label} has only {length} and can be guessed; `openssl rand -base64 24` makes a better one"


def token_of(token: str | None, file: Path | None) -> str | None:
    if token and file:
        raise ConfigError("--token is given too", option="--token-file", advice="leave one of them out")
    if file:
        tokens = [token for token, _ in labelled_tokens(file)]
        if len(tokens) != 1:
            raise ConfigError(f"{file} has {len(tokens)} tokens", option="--token-file", advice="put one token in it")
        return tokens[0]
    return check_token(token, "--token") if token else None


def ech_config_list(value: str | bytes) -> bytes:
    option = "--ech-config"
    if isinstance(value, bytes):
        data, source = value, "the given bytes"
    elif value.startswith("@"):
        file = files.expand(value[1:], option)
        data, source = files.read(file, option), str(file)
        if not _looks_like_list(data):
            data = files.text_of(data, file, option).encode()
            if b"-----BEGIN" in data:
                files.check_pem(data, file, option)
    else:
        data, source = value.encode("ascii", errors="replace"), "the given text"
        if b"-----BEGIN" not in data:
            data = _base64(data, option, source)
    from ech_workers._native import parse_ech_config_list, read_ech_pem

    try:
        if b"-----BEGIN" in data:
            if b"PRIVATE KEY-----" in data:
                raise ConfigError(
                    f"{source} has the server's private key in it, which no client may have",
                    option=option,
                    code="ech-private-key",
                    advice="take the ID.ech file that `ech-workers keygen` writes beside it, and make a new key",
                )
            _, data = read_ech_pem(data)
        elif not _looks_like_list(data):
            data = _base64(data, option, source)
        parse_ech_config_list(data)
    except ValueError as error:
        raise ConfigError(
            f"{source} is no ECHConfigList: {error}",
            option=option,
            advice="give base64, or @FILE with the raw list, its base64 or an RFC 9934 PEM file",
        ) from None
    return data


def _looks_like_list(data: bytes) -> bool:
    # ECHConfigList is a vector with a 16-bit length in front (RFC 9849 section 4).
    return len(data) >= 2 and int.from_bytes(data[:2], "big") == len(data) - 2


def _base64(data: bytes, option: str, source: str) -> bytes:
    try:
        return base64.b64decode(b"".join(data.strip().strip(b"\"'").split()), validate=True)
    except binascii.Error:
        raise ConfigError(
            f"{source} is neither base64 nor an ECHConfigList",
            option=option,
            advice="give base64, or @FILE with the raw list, its base64 or an RFC 9934 PEM file",
        ) from None


def credential(value: str | None, option: str) -> str | None:
    # RFC 1929 section 2: one byte of length.
    if value is not None and not 1 <= len(value.encode()) <= 255:
        raise ConfigError("must be 1 to 255 bytes long", option=option)
    return value


def authorities(text: bytes | None, file: Path | None) -> bytes:
    """The PEM of private authorities: given as it is, or in a file."""
    option = "--ca-file"
    named = file or Path("the given text")
    pem = files.read(named, option) if text is None else text
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ConfigError(f"{named} has no certificate in it", option=option, advice="give a PEM file")
    files.check_pem(pem, named, option)
    return pem
