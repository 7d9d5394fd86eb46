"""A configuration from the default, the file, the environment and the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from ech_workers.config import ClientConfig, ServerConfig
from ech_workers.errors import ConfigError
from ech_workers.options import file, several
from ech_workers.options.client import CLIENT, SERVER_TABLE
from ech_workers.options.rules import RULE_TABLE
from ech_workers.options.schema import options_of
from ech_workers.options.server import SERVER
from ech_workers.options.sources import Given, Layer, Settings, environment, merge
from ech_workers.rules import RULES_MAX, RuleConfig, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ech_workers.options.schema import Schema

__all__ = ["CLIENT_PREFIX", "CONFIG_VARIABLE", "SERVER_PREFIX", "Given", "Loaded", "client", "server", "shown"]

CLIENT_PREFIX = "ECH_WORKERS_"
SERVER_PREFIX = "ECH_WORKERS_SERVER_"
CONFIG_VARIABLE = "CONFIG"
"""After the prefix: the variable that names the configuration file."""

C = TypeVar("C", ClientConfig, ServerConfig)

# What belongs to one server, so that the command line cannot give it to several at once.
_OF_ONE_SERVER = ("token", "token_file", "server_ip", "ech_config", "ech_domain", "ech_bootstrap")


_OF_ANOTHER = {*_OF_ONE_SERVER, "server", "ech", "yamux"}


class Loaded(NamedTuple, Generic[C]):
    """A configuration and how it came about."""

    config: C
    settings: Settings
    tables: tuple[Settings, ...]
    """What counts for each ``[[server]]``."""
    rules: tuple[Settings, ...]
    """Each ``[[rule]]``."""
    path: Path | None
    """The configuration file; None: there is none."""
    warnings: tuple[str, ...]


def client(
    command_line: Layer,
    *,
    config: str | None = None,
    variables: Mapping[str, str] | None = None,
    names: Iterable[str] = (),
    link: Layer | None = None,
) -> Loaded[ClientConfig]:
    """The configuration of the proxy. names: the options that the command takes, all unless given; what else a file or the
    environment gives is not looked at. link: what a link gives; of its server nothing counts that is said elsewhere of
    another one, but on the command line. Raises ConfigError."""
    found = _file(config, file.CLIENT_FILE, CLIENT_PREFIX, CLIENT, variables)
    wanted = set(names)
    own: Layer = (
        {} if found is None else {key: given for key, given in found.layer.items() if key in wanted or not wanted}
    )
    around = environment(CLIENT, CLIENT_PREFIX, variables, names=names)
    if link is not None:
        # No server is to be told the token of another one.
        own = {name: given for name, given in own.items() if name not in _OF_ANOTHER}
        around = {name: given for name, given in around.items() if name not in _OF_ANOTHER}
    outer = merge(CLIENT, [around, link or {}, command_line])
    written = several.texts(outer.given.get("server"))
    is_several = len(written) > 1 or any(several.has_keys(text) for text in written)
    if "server" in outer.given and not is_several:
        outer.given["server"] = outer.given["server"]._replace(value="".join(written))
    settings = merge(CLIENT, [own, outer.given])
    if is_several:
        tables, authorities = _written(found, written, outer.given)
        if authorities and settings.values.get("ca_file"):
            raise ConfigError("a link of --server trusts authorities too", option="--ca-file", advice=_ONE_CA)
        if authorities:
            settings.given["ca_file"] = Given("".join(authorities), "--server")
    else:
        tables = _tables(found, own, outer.given)
    values = {
        name: value for name, value in settings.values.items() if not tables or name not in options_of(SERVER_TABLE)
    }
    try:
        _check_tables(tables)
        made = ClientConfig.of(values, [table.values for table in tables])
    except ConfigError as error:
        raise _missing(settings.blame(error)) from None
    rules = tuple(Settings(table, RULE_TABLE) for table in (found.tables.get("rule", []) if found else []))
    made = msgspec.structs.replace(made, rules=_rules(rules, found, made))
    return Loaded(made, settings, tables, rules, found.path if found else None, tuple(found.warnings) if found else ())


_ONE_CA = "put all of them into one file, and leave the links' ca out"


def _check_tables(tables: Sequence[Settings]) -> None:
    """Each server by itself, so that what is wrong with one is said of it. Raises ConfigError."""
    for number, table in enumerate(tables):
        try:
            ClientConfig.of({}, [table.values])
        except ConfigError as error:
            raise table.blame(error) from None
        names_before = [other.values.get("name") for other in tables[:number]]
        if table.values.get("name") in names_before and table.values.get("name"):
            raise ConfigError(f"{table.values['name']!r} is the name of two servers", option=table.given["name"].origin)


def server(
    command_line: Layer, *, config: str | None = None, variables: Mapping[str, str] | None = None
) -> Loaded[ServerConfig]:
    """The configuration of the server. Raises ConfigError."""
    found = _file(config, file.SERVER_FILE, SERVER_PREFIX, SERVER, variables)
    layers = [found.layer if found else {}, environment(SERVER, SERVER_PREFIX, variables), command_line]
    settings = merge(SERVER, layers)
    try:
        made = ServerConfig.of(settings.values)
    except ConfigError as error:
        raise settings.blame(error) from None
    return Loaded(made, settings, (), (), found.path if found else None, tuple(found.warnings) if found else ())


def _file(
    given: str | None, name: str, prefix: str, schema: Schema, variables: Mapping[str, str] | None
) -> file.ConfigFile | None:
    environ = os.environ if variables is None else variables
    given = environ.get(prefix + CONFIG_VARIABLE) if given is None else given
    path = Path(given) if given else (None if given == "" else file.find(name, variables))
    if path is None:
        return None
    is_client = schema is CLIENT
    other, command = (SERVER, "server") if is_client else (CLIENT, "proxy")
    mine = options_of(schema)
    return file.read(
        path,
        schema,
        {"server": SERVER_TABLE, "rule": RULE_TABLE} if is_client else {},
        others={
            f"that is an option of `ech-workers {command}`": [key for key in options_of(other) if key not in mine],
        },
    )


def _written(
    found: file.ConfigFile | None, texts: Sequence[str], outer: Layer
) -> tuple[tuple[Settings, ...], tuple[str, ...]]:
    """The servers that are given with all that is said of them, or by their names in the file; and the authorities of their
    links. Nothing counts that the file says of others."""
    named = {
        table["name"].value: table for table in (found.tables.get("server", []) if found else []) if "name" in table
    }
    common = {name: given for name, given in outer.items() if name in options_of(SERVER_TABLE) and name != "server"}
    for name in _OF_ONE_SERVER:
        if name in common and len(texts) > 1:
            raise ConfigError(
                f"there are {len(texts)} --server",
                option=common[name].origin,
                advice=f"say it of one: --server HOST/PATH,{name.replace('_', '-')}=...",
            )
    tables: list[Settings] = []
    authorities: tuple[str, ...] = ()
    for text in texts:
        layer, trusted = (named[text], ()) if text in named else several.read(text)
        authorities += trusted
        tables.append(merge(SERVER_TABLE, [common, layer]))
    return tuple(tables), authorities


def _tables(found: file.ConfigFile | None, own: Layer, outer: Layer) -> tuple[Settings, ...]:
    tables = found.tables.get("server", []) if found else []
    if not tables:
        if found is not None and "server" in found.tables and "server" not in outer:
            raise ConfigError("the list of servers is empty", option=f"{found.path}: server", code="server-missing")
        return ()
    chosen = outer.get("server")
    if chosen is not None:
        # One of the file's by its name, or another server, of which the file says nothing.
        tables = [table for table in tables if "name" in table and table["name"].value == chosen.value]
        outer = {name: given for name, given in outer.items() if name != "server"}
        if not tables:
            return ()
    of_server = options_of(SERVER_TABLE)
    outer = {name: given for name, given in outer.items() if name in of_server}
    if len(tables) > 1:
        for name in _OF_ONE_SERVER:
            if name in outer:
                raise ConfigError(
                    f"there are {len(tables)} servers in {found.path if found else 'the file'}",
                    option=outer[name].origin,
                    advice="say it in the [[server]] it is for, or say which one with --server NAME",
                )
    common = {name: given for name, given in own.items() if name in of_server and name != "server"}
    return tuple(merge(SERVER_TABLE, [common, table, outer]) for table in tables)


def _rules(rules: tuple[Settings, ...], found: file.ConfigFile | None, made: ClientConfig) -> tuple[RuleConfig, ...]:
    if len(rules) > RULES_MAX:
        raise ConfigError(
            f"there are {len(rules)} rules, and at most {RULES_MAX} are taken",
            option=str(found.path) if found else "rule",
            advice="put domains and networks into lists",
        )
    # One that is not in use now may be named all the same.
    tables = found.tables.get("server", []) if found else []
    servers: dict[str, int | None] = {table["name"].value: None for table in tables if "name" in table}
    servers |= made.numbers
    read_ones = []
    for number, rule in enumerate(rules, 1):
        try:
            read_ones.append(read(rule.values, servers, f"{found.path if found else ''}, [[rule]] {number}"))
        except ConfigError as error:
            raise rule.blame(error) from None
    return tuple(read_ones)


def _missing(error: ConfigError) -> ConfigError:
    if error.code != "server-missing":
        return error
    return ConfigError(
        "is missing",
        option="--server",
        code="server-missing",
        advice="give --server HOST[:PORT]/PATH, set ECH_WORKERS_SERVER, or write it down with `ech-workers config init`",
    )


def shown(settings: Settings, name: str, of: Callable[[Any], str] = repr) -> str:
    """The value of an option for people: never a secret."""
    given = settings.given.get(name)
    declared = options_of(settings.schema)[name]
    if given is None:
        return "(none)" if declared.default is None or declared.default == () else of(declared.default)
    return "(hidden)" if declared.secret else of(given.value)
