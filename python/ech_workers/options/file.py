"""The configuration file: TOML, read with the line of each key, so that a refusal can name it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ech_workers import files
from ech_workers.errors import ConfigError
from ech_workers.options.schema import Option, Schema, options_of, parse
from ech_workers.options.sources import Given, Layer, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CLIENT_FILE", "SERVER_FILE", "ConfigFile", "find", "read"]

CLIENT_FILE = "config.toml"
SERVER_FILE = "server.toml"

_OPTION = "--config"


class ConfigFile:
    """What a file says: options, and tables of options (``[[server]]``)."""

    def __init__(self, path: Path, layer: Layer, tables: dict[str, list[Layer]], warnings: list[str]) -> None:
        self.path = path
        self.layer = layer
        self.tables = tables
        self.warnings = warnings
        """What to say of it at the start."""


def find(name: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """The first of the default places that has a file of this name: the user's, then the system's."""
    variables = os.environ if environment is None else environment
    places = [Path("/etc")]
    home = variables.get("XDG_CONFIG_HOME") or (f"{variables['HOME']}/.config" if variables.get("HOME") else None)
    if home:
        places.insert(0, Path(home))
    for place in places:
        path = place / "ech-workers" / name
        if path.is_file():
            return path
    return None


def read(
    path: Path,
    schema: Schema,
    tables: Mapping[str, Schema] | None = None,
    *,
    others: Mapping[str, Iterable[str]] | None = None,
) -> ConfigFile:
    """Reads and checks a file.

    tables: the schemas of its arrays of tables by their key. others: what to say of keys that belong into another command's
    file. Raises ConfigError with the file, the line, the key, what was expected, and the nearest known key."""
    tables = tables or {}
    text = files.text_of(files.read(path, _OPTION), path, _OPTION)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # "... (at line 3, column 5)", or "... (at end of document)".
        message, _, place = str(error).rpartition(" (at ")
        found_line = re.match(r"line (\d+), ", place)
        line = int(found_line[1]) if found_line else len(text.rstrip().splitlines())
        if message == "Invalid value":
            # The key, and only if it is one of ours: anything else in the line may be a secret.
            key = text.splitlines()[line - 1].partition("=")[0].strip()
            is_known = any(key in options_of(each) for each in (schema, *(tables or {}).values()))
            expected = "expected text in double quotes, a number, true, false, or a list in brackets"
            message = f"{key}: {expected}" if is_known else expected
        raise ConfigError(f"{path}, line {line}: {message}", option=_OPTION) from None
    lines = _lines(text)
    known = options_of(schema)
    layer: Layer = {}
    kept: dict[str, list[Layer]] = {}
    for key, value in found.items():
        if key in tables and isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            inner = options_of(tables[key])
            kept[key] = [
                _layer(
                    path, entry, {_in_table(name): declared for name, declared in inner.items()}, lines, (key, index)
                )
                for index, entry in enumerate(value)
            ]
        else:
            layer |= _layer(path, {key: value}, known, lines, None, tables=tables, others=others or {})
    warnings = []
    secrets = [name for name, declared in known.items() if declared.secret]
    holds = [
        name for name in secrets if name in layer or any(name in entry for all_ in kept.values() for entry in all_)
    ]
    if holds and path.stat().st_mode & 0o077:
        warnings.append(
            f"{path} holds a secret ({', '.join(holds)}) and can be read by other users of this machine: chmod 600 {path}"
        )
    return ConfigFile(path, layer, kept, warnings)


def _in_table(name: str) -> str:
    """A table's own name for an option: a ``[[server]]`` has an address, not a server."""
    return "address" if name == "server" else name


def _layer(
    path: Path,
    entries: Mapping[str, Any],
    known: Mapping[str, Option],
    lines: Mapping[tuple[str, int] | None, Mapping[str, int]],
    table: tuple[str, int] | None,
    *,
    tables: Mapping[str, object] | None = None,
    others: Mapping[str, Iterable[str]] | None = None,
) -> Layer:
    layer: Layer = {}
    for key, value in entries.items():
        line = lines.get(table, {}).get(key)
        where = f"{path}, line {line}" if line else str(path)
        declared = known.get(key) or known.get(key.replace("-", "_"))
        if declared is None:
            raise ConfigError(
                f"{where}: {key!r} is no option", option=_OPTION, advice=_advice(key, known, tables, others)
            )
        origin = f"{where}: {key}"
        try:
            layer[declared.name] = Given(_value(declared, value, path.parent), origin)
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}", option=_OPTION) from None
    return layer


def _advice(
    key: str,
    known: Mapping[str, Option],
    tables: Mapping[str, object] | None,
    others: Mapping[str, Iterable[str]] | None,
) -> str:
    for place, keys in (others or {}).items():
        if key in keys:
            return place
    near = nearest(key, [*known, *(tables or {})])
    return f"did you mean {near}?" if near else "`ech-workers config schema` lists what there is"


def _value(declared: Option, value: Any, folder: Path) -> Any:
    """The value as the command line would have it. Raises ValueError that says what was expected."""
    if declared.several:
        values = value if isinstance(value, list) else [value]
        if not all(
            isinstance(one, str) or (type(one) is int and declared.name.endswith(("listen", "port"))) for one in values
        ):
            raise ValueError(f"expected a list of texts, not {_toml(value)}")
        return tuple(_path(declared, str(one), folder) for one in values)
    if declared.kind == "switch":
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, not {_toml(value)}")
        return value
    if declared.kind in ("number", "seconds", "size"):
        if isinstance(value, str) and declared.kind != "number":
            return parse(declared, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"expected {_EXPECTED[declared.kind]}, not {_toml(value)}")
        return value
    if declared.name == "listen" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a text, not {_toml(value)}")
    return _path(declared, value, folder)


_EXPECTED = {
    "number": "a whole number",
    "seconds": "a time, in seconds or like '10m'",
    "size": "a size, in bytes or like '256M'",
}


def _path(declared: Option, value: str, folder: Path) -> str:
    if declared.name == "ech_config":
        return f"@{_absolute(value[1:], folder)}" if value.startswith("@") else value
    if declared.name == "ca_file" and "-----BEGIN" in value:
        return value
    return _absolute(value, folder) if declared.path and value else value


def _absolute(value: str, folder: Path) -> str:
    return value if value.startswith("~") else str(folder / value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list"
    return "a table" if isinstance(value, dict) else repr(value)


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+))\s*[=.]")


def _lines(text: str) -> dict[tuple[str, int] | None, dict[str, int]]:
    """The line of each key, by table. The text is known to be TOML; what is inside a text of several lines, where a line
    may look like a key, is passed over."""
    lines: dict[tuple[str, int] | None, dict[str, int]] = {None: {}}
    counts: dict[str, int] = {}
    table: tuple[str, int] | None = None
    open_text: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if open_text is not None:
            if open_text in line:
                open_text = None
            continue
        header, key = _HEADER.match(line), _KEY.match(line)
        if header is not None:
            name = header[2]
            lines[None].setdefault(name, number)
            if header[1] == "[[":
                table = (name, counts.get(name, 0))
                counts[name] = table[1] + 1
            else:
                table = (name, 0)
            lines.setdefault(table, {})
        elif key is not None:
            lines[table].setdefault(next(filter(None, key.groups())), number)
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                open_text = mark
    return lines
