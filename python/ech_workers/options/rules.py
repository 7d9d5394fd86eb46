"""A ``[[rule]]`` of a configuration file: which way connections go."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ech_workers.options.schema import Schema, option

__all__ = ["RULE_TABLE", "RuleTable"]


def _condition(text: str, metavar: str, *, path: bool = False) -> msgspec.Meta:
    return option(text, metavar=metavar, path=path, live="drains", shown_default="", file_only=True)


class RuleTable(msgspec.Struct, frozen=True, kw_only=True):
    """The first rule that a connection meets decides. It must meet one of the conditions on its host, if there are any,
    and one of those on its port, if there are any."""

    to: Annotated[
        str | None,
        option(
            "`tunnel`, `direct` (from this machine), `block`, or the name of the `[[server]]` that alone may carry it",
            metavar="WAY",
            live="drains",
            shown_default="required",
            file_only=True,
        ),
    ] = None
    domain: Annotated[tuple[str, ...], _condition("a domain and all below it", "NAME")] = ()
    domain_exact: Annotated[tuple[str, ...], _condition("a name and nothing below it", "NAME")] = ()
    domain_keyword: Annotated[tuple[str, ...], _condition("names with this in them", "TEXT")] = ()
    domain_list: Annotated[
        tuple[str, ...],
        _condition("a file of domains, one a line, each with all below it; `#` begins a comment", "FILE", path=True),
    ] = ()
    network: Annotated[
        tuple[str, ...],
        _condition(
            "a network (`192.168.0.0/16`) or an address; for targets that a program names by their address", "NETWORK"
        ),
    ] = ()
    network_list: Annotated[
        tuple[str, ...], _condition("a file of networks and addresses, one a line", "FILE", path=True)
    ] = ()
    port: Annotated[tuple[str, ...], _condition("a port, or a range of ports: `8000-8099`", "PORT")] = ()


RULE_TABLE: Schema = (RuleTable,)
