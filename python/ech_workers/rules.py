"""Rules for which way connections go: read from a configuration, compiled for the engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ech_workers import files
from ech_workers.arguments import ArgumentError
from ech_workers.errors import ConfigError
from ech_workers.names import ascii_name
from ech_workers.options.rules import RULE_TABLE
from ech_workers.options.schema import options_of
from ech_workers.options.sources import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ech_workers import _native

__all__ = ["ListFile", "RuleConfig", "compiled", "read", "read_all", "servers_of"]

Way = Literal["tunnel", "direct", "block", "server"]

_WAYS = ("tunnel", "direct", "block")

RULES_MAX = 256
"""More belong into lists."""

LIST_LIMIT = 256 << 20
"""Bytes of a list."""


class ListFile(msgspec.Struct, frozen=True):
    """A list, and what was in it."""

    path: Path
    digest: bytes


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One rule. Lists are files, read when the rule is compiled: they may be large."""

    to: Way
    server: int = 0
    """With ``server``: the only server that may carry what meets the rule, by its place in the configuration."""
    domains: tuple[str, ...] = ()
    exact_domains: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    domain_lists: tuple[ListFile, ...] = ()
    networks: tuple[str, ...] = ()
    network_lists: tuple[ListFile, ...] = ()
    ports: tuple[str, ...] = ()


# What the native rule calls otherwise than the configuration file.
_KEYS = {
    "domains": "domain",
    "exact_domains": "domain_exact",
    "keywords": "domain_keyword",
    "domain_lists": "domain_list",
    "networks": "network",
    "network_lists": "network_list",
    "ports": "port",
}


def read(values: Mapping[str, Any], servers: Mapping[str, int | None], where: str = "rule") -> RuleConfig:
    """A rule of a configuration file, or of a Python program, by the names of ``RuleTable``. servers: their places by
    name; None: it is known and not in use, so what is meant for it goes through the tunnel.

    Raises ConfigError that names the key."""
    known = options_of(RULE_TABLE)
    for name in values:
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(f"{where}: {name!r} is no condition", advice=f"did you mean {near}?" if near else "")
    to, server = _way(values.get("to"), servers, where)
    found = {name: _texts(values.get(key), key) for name, key in _KEYS.items()}
    lists = {
        name: tuple(_list(path, _KEYS[name]) for path in found.pop(name)) for name in ("domain_lists", "network_lists")
    }
    for name in ("domains", "exact_domains"):
        found[name] = tuple(_name(text, _KEYS[name]) for text in found[name])
    rule = RuleConfig(to=to, server=server, **found, **lists)  # type: ignore[arg-type]
    # Its lists are tried when it is compiled for use.
    _compiled(msgspec.structs.replace(rule, domain_lists=(), network_lists=()))
    return rule


def read_all(tables: Sequence[Mapping[str, Any]], servers: Mapping[str, int | None]) -> tuple[RuleConfig, ...]:
    """All rules of a Python program. Raises ConfigError."""
    if not isinstance(tables, list | tuple) or not all(hasattr(table, "items") for table in tables):
        raise ConfigError("expected a list of rules, each a mapping", option="rule")
    if len(tables) > RULES_MAX:
        raise ConfigError(f"there are {len(tables)} rules, and at most {RULES_MAX} are taken", option="rule")
    return tuple(read(table, servers, f"rule {number}") for number, table in enumerate(tables, 1))


def compiled(rules: Sequence[RuleConfig], numbers: Sequence[int] | None = None) -> list[_native.Rule]:
    """The rules for the engine. numbers: those by which it knows the configuration's servers; None: their places. Raises ConfigError that names
    the file and the line of a list."""
    return [
        _compiled(rule, rule.server if numbers is None or rule.to != "server" else numbers[rule.server])
        for rule in rules
    ]


def servers_of(rules: Sequence[RuleConfig]) -> frozenset[int]:
    """The servers that rules name, by their place in the configuration."""
    return frozenset(rule.server for rule in rules if rule.to == "server")


def _compiled(rule: RuleConfig, server: int = 0) -> _native.Rule:
    from ech_workers import _native

    try:
        return _native.Rule(
            rule.to,
            server=server,
            domains=rule.domains,
            exact_domains=rule.exact_domains,
            keywords=rule.keywords,
            domain_lists=[files.read(one.path, "domain_list", LIST_LIMIT) for one in rule.domain_lists],
            networks=rule.networks,
            network_lists=[files.read(one.path, "network_list", LIST_LIMIT) for one in rule.network_lists],
            ports=rule.ports,
        )
    except ArgumentError as error:
        option, why = _KEYS[error.argument], error.problem
        if error.index is not None and error.argument in ("domain_lists", "network_lists"):
            why = f"{getattr(rule, error.argument)[error.index].path}, {why}"
        raise ConfigError(why, option=option) from None


def _way(to: Any, servers: Mapping[str, int | None], where: str) -> tuple[Way, int]:
    if to in _WAYS:
        return to, 0
    if to is None:
        raise ConfigError(f"{where}: `to` is missing", advice=f"choose from {', '.join(_WAYS)}, or name a server")
    if not isinstance(to, str) or to not in servers:
        near = nearest(str(to), [*_WAYS, *servers])
        raise ConfigError(
            f"{to!r} is neither a way nor the name of a server",
            option="to",
            advice=f"did you mean {near}?" if near else f"choose from {', '.join([*_WAYS, *servers])}",
        )
    number = servers[to]
    return ("tunnel", 0) if number is None else ("server", number)


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    values = (value,) if isinstance(value, str | int | Path) else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, str | int | Path) for one in values):
        raise ConfigError(f"expected a text or several, not {value!r}", option=key)
    return tuple(str(one) for one in values)


def _name(text: str, key: str) -> str:
    try:
        return ascii_name(text.strip())
    except ValueError as error:
        raise ConfigError(f"{text!r} is no domain name: {error}", option=key) from None


def _list(path: str, key: str) -> ListFile:
    file = files.expand(path, key)
    return ListFile(file, hashlib.blake2b(files.read(file, key, LIST_LIMIT), digest_size=16).digest())
