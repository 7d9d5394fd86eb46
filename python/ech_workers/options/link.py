"""One link for all that a client needs: ``ech-workers://TOKEN@HOST:PORT/PATH?ech=...``.

| part | option |
|---|---|
| user | token |
| host, port, path and its own query | server |
| ``ech`` | ech_config: the ECHConfigList, base64url |
| ``ech-domain``, ``ech-bootstrap`` | of the same names |
| ``ip`` (several) | server_ip |
| ``ca`` | ca_file: the certificate of a private authority, DER in base64url |
| ``mode=simple`` | yamux off |
| ``query`` | the query of the path, which is seldom needed |
| fragment | a name for people |

Unknown parameters are an error: what cannot be understood must not be left out in silence.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from ech_workers.config import ClientConfig

__all__ = ["SCHEME", "make", "read"]

SCHEME = "ech-workers"

_OPTION = "LINK"

_PROTOCOLS = {
    "vless": "VLESS",
    "vmess": "VMess",
    "trojan": "Trojan",
    "ss": "Shadowsocks",
    "hysteria2": "Hysteria",
    "tuic": "TUIC",
}


def make(config: ClientConfig, name: str | None = None) -> str:
    """The link for the (first) server of a configuration. It holds the token, if there is one."""
    server = config.server
    path, _, query = server.path.partition("?")
    user = f"{quote(config.token, safe='')}@" if config.token else ""
    parameters: list[tuple[str, str]] = []
    if not config.ech:
        raise ConfigError("a link is for a server with ECH", option="--no-ech", advice="leave --no-ech out")
    if config.ech_config is not None:
        parameters.append(("ech", _encoded(config.ech_config)))
    if config.ech_domain is not None:
        parameters.append(("ech-domain", config.ech_domain))
    if config.ech_bootstrap is not None:
        parameters.append(("ech-bootstrap", config.ech_bootstrap))
    parameters += [("ip", address) for address in config.server_ips]
    if config.ca_pem is not None:
        parameters += [("ca", _encoded(der)) for der in _certificates(config.ca_pem)]
    if config.mode == "simple":
        parameters.append(("mode", "simple"))
    if query:
        parameters.append(("query", query))
    tail = f"?{urlencode(parameters)}" if parameters else ""
    return f"{SCHEME}://{user}{server.authority}{path}{tail}{f'#{quote(name)}' if name else ''}"


def read(text: str) -> dict[str, Any]:
    """The options that a link holds. Raises ConfigError; no message has the token in it."""
    text = text.strip()
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower() != SCHEME:
        known = _PROTOCOLS.get(scheme.lower()) if separator else None
        raise ConfigError(
            f"{known} is another protocol" if known else "this is no link of this program",
            option=_OPTION,
            code="link-invalid",
            advice=f"ask for one that begins with {SCHEME}://",
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.password is not None:
        raise _unreadable("its host cannot be read")
    options: dict[str, Any] = {}
    if parts.username:
        options["token"] = unquote(parts.username)
    path, query = parts.path or "/", ""
    addresses, authorities = [], []
    for key, value in parse_qsl(parts.query, keep_blank_values=True, max_num_fields=64):
        if key == "ech":
            options["ech_config"] = base64.b64encode(_decoded(value, "ech")).decode()
        elif key in ("ech-domain", "ech-bootstrap"):
            options[key.replace("-", "_")] = value
        elif key == "ip":
            addresses.append(value)
        elif key == "ca":
            authorities.append(_pem(_decoded(value, "ca")))
        elif key == "mode" and value in ("simple", "yamux"):
            options["yamux"] = value == "yamux"
        elif key == "query":
            query = f"?{value}"
        else:
            raise _unreadable(f"this version does not know its {key[:40]!r}")
    if addresses:
        options["server_ip"] = tuple(addresses)
    if authorities:
        options["ca_file"] = "".join(authorities)
    shown = f"[{host}]" if ":" in host else host
    options["server"] = f"{shown}{'' if port is None else f':{port}'}{path}{query}"
    return options


def _unreadable(why: str) -> ConfigError:
    return ConfigError(
        f"{why}", option=_OPTION, code="link-invalid", advice="copy the link again, all of it and in quotes"
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str, name: str) -> bytes:
    try:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
            raise binascii.Error
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise _unreadable(f"its {name} is no base64url") from None


def _certificates(pem: bytes) -> list[bytes]:
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", pem, re.DOTALL)
    return [base64.b64decode(block) for block in blocks]


def _pem(der: bytes) -> str:
    encoded = base64.b64encode(der).decode()
    lines = [encoded[start : start + 64] for start in range(0, len(encoded), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
