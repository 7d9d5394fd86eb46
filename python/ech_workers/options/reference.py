"""What is generated from the schemas: the tables of the reference, the types of Python programs, the JSON Schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ech_workers.options.client import CLIENT, SERVER_TABLE
from ech_workers.options.rules import RULE_TABLE
from ech_workers.options.schema import Option, Schema, options_of
from ech_workers.options.server import SERVER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["CLIENT_ORDER", "SERVER_ORDER", "generated", "json_schema", "metavar", "table", "typed_module"]

CLIENT_ORDER = [
    "server",
    "token",
    "token_file",
    "listen",
    "username",
    "password",
    "ech",
    "yamux",
    "server_ip",
    "ech_config",
    "ech_domain",
    "ech_bootstrap",
    "doh_server",
    "doh_ip",
    "ca_file",
    "profile",
    "alpn",
    "sessions",
    "policy",
    "standby",
    "reply",
    "open_timeout",
    "idle_timeout",
    "max_connections",
    "memory_limit",
    "cache_dir",
    "status_listen",
    "status_host",
    "status_token",
    "control",
    "log_level",
    "log_file",
    "log_format",
    "log_targets",
    "log_max_size",
    "log_max_age",
    "log_keep",
]
"""The order in which people read them."""

SERVER_ORDER = [
    "listen",
    "cert",
    "key",
    "ech_keys",
    "ticket_keys",
    "token",
    "token_file",
    "path",
    "decoy",
    "public_healthz",
    "allow_private_targets",
    "max_sessions",
    "max_streams",
    "memory_limit",
    "connect_timeout",
    "idle_timeout",
    "drain",
    "workers",
    "status_listen",
    "status_host",
    "status_token",
    "control",
    "log_level",
    "log_file",
    "log_format",
    "log_targets",
    "log_max_size",
    "log_max_age",
    "log_keep",
]

_LIVE = {"now": "at once", "drains": "new ones", "sessions": "new sessions", "restart": "restart"}


def generated(root: Path) -> dict[Path, str]:
    """Every file of the repository with generated text in it, and what it is to be."""
    reference = root / "docs" / "reference" / "cli.md"
    text = reference.read_text()
    for name, block in (
        ("proxy", table(CLIENT, CLIENT_ORDER)),
        ("server table", table(SERVER_TABLE, ["name", "priority", "weight"])),
        ("rule table", table(RULE_TABLE, options_of(RULE_TABLE))),
        ("server", table(SERVER, SERVER_ORDER)),
    ):
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + block + end + rest.partition(end)[2]
    folder = root / "docs" / "reference"
    return {
        reference: text,
        root / "python" / "ech_workers" / "options" / "typed.py": typed_module(),
        folder / "config.schema.json": json.dumps(json_schema(), indent=2) + "\n",
        folder / "server.schema.json": json.dumps(server_json_schema(), indent=2) + "\n",
    }


def table(schema: Schema, names: Iterable[str]) -> str:
    """The Markdown table of these options."""
    known = options_of(schema)
    rows = ["| option | default | reload | |", "|---|---|---|---|"]
    for name in names:
        declared = known[name]
        rows.append(
            f"| {_spelled(declared)} | {_shown(declared)} | {_LIVE[declared.live]} | {declared.about.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(rows) + "\n"


def metavar(declared: Option) -> str | None:
    """What stands for the value on the command line."""
    if declared.kind == "switch":
        return None
    if declared.kind == "choice":
        return "|".join(declared.choices)
    return declared.metavar or {"seconds": "TIME", "size": "SIZE", "number": "N"}.get(declared.kind, "TEXT")


def _spelled(declared: Option) -> str:
    if declared.file_only:
        return f"`{declared.name} = {metavar(declared)}`"
    if declared.kind == "switch":
        return f"`{declared.flag}` / `--{declared.off}`" if declared.off else f"`{declared.flag}`"
    return f"`{declared.flag} {(metavar(declared) or '').replace('|', chr(92) + '|')}`"


def _shown(declared: Option) -> str:
    return declared.default_text if declared.shown_default is not None else f"`{declared.default_text}`"


_TYPES = {"text": "str | None", "switch": "bool", "number": "int", "seconds": "float | timedelta", "size": "int | str"}

_HEAD = '''"""The options of ``ClientConfig.build``, ``Tunnel`` and ``ServerConfig.build``, for callers that hand them on.

Generated from the schemas by scripts/generate_reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

__all__ = ["ClientOptions", "ServerOptions"]
'''


def typed_module() -> str:
    """The text of ``options/typed.py``."""
    parts = [_HEAD]
    for name, about, schema, order in (
        ("ClientOptions", "The options of ``ech-workers proxy`` beside ``server``.", CLIENT, CLIENT_ORDER),
        ("ServerOptions", "The options of ``ech-workers server``.", SERVER, SERVER_ORDER),
    ):
        known = options_of(schema)
        parts.append(f'\n\nclass {name}(TypedDict, total=False):\n    """{about}"""\n\n')
        parts += [f"    {option}: {_type(known[option])}\n" for option in order if option != "server"]
        if schema is CLIENT:
            parts.append("    rule: Sequence[Mapping[str, object]] | None\n")
    return "".join(parts)


def _type(declared: Option) -> str:
    if declared.api is not None:
        return declared.api
    return (
        "str" if declared.kind == "choice" or (declared.kind == "text" and declared.default) else _TYPES[declared.kind]
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``config.toml``, for editors."""
    servers = {"type": "array", "items": _object(SERVER_TABLE, rename={"server": "address"}), "minItems": 1}
    client = _object(CLIENT)
    client["properties"]["server"] = {
        "description": client["properties"]["server"]["description"],
        "oneOf": [{"type": "string"}, servers],
    }
    client["properties"]["rule"] = {
        "description": "which way connections go; the first rule that one meets decides",
        "type": "array",
        "items": {**_object(RULE_TABLE), "required": ["to"]},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ech-workers proxy", **client}


def server_json_schema() -> dict[str, Any]:
    """The JSON Schema of ``server.toml``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ech-workers server",
        **_object(SERVER),
    }


def _object(schema: Schema, rename: dict[str, str] | None = None) -> dict[str, Any]:
    properties = {(rename or {}).get(name, name): _property(declared) for name, declared in options_of(schema).items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(declared: Option) -> dict[str, Any]:
    about: dict[str, Any] = {"description": declared.about}
    if declared.default is not None and not declared.secret:
        about["default"] = list(declared.default) if declared.several else declared.default
    if declared.several:
        one = {"type": ["string", "integer"]} if declared.name == "port" else {"type": "string"}
        return {**about, "oneOf": [one, {"type": "array", "items": one}]}
    if declared.kind == "choice":
        return {**about, "enum": list(declared.choices)}
    if declared.kind == "switch":
        return {**about, "type": "boolean"}
    if declared.kind == "text":
        return {**about, "type": "string"}
    number = {"type": "integer" if declared.kind != "seconds" else "number"}
    number |= {"minimum": declared.low, "maximum": declared.high}  # type: ignore[dict-item]
    if declared.kind == "number":
        return {**about, **number}
    return {**about, "oneOf": [number, {"type": "string"}]}
