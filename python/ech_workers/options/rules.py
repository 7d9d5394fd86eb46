"""A ``[[rule]]`` of a configuration file: which way connections go."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ech_workers.options.schema import Schema, option

__all__ = ["RULE_TABLE", "RuleTable"]


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
    domain: Annotated[
        tuple[str, ...],
        option("a domain and all below it", metavar="NAME", live="drains", shown_default="", file_only=True),
    ] = ()
    domain_exact: Annotated[
        tuple[str, ...],
        option("a name and nothing below it", metavar="NAME", live="drains", shown_default="", file_only=True),
    ] = ()
    domain_keyword: Annotated[
        tuple[str, ...],
        option("names with this in them", metavar="TEXT", live="drains", shown_default="", file_only=True),
    ] = ()
    domain_list: Annotated[
        tuple[str, ...],
        option(
            "a file of domains, one a line, each with all below it; `#` begins a comment",
            metavar="FILE",
            path=True,
            live="drains",
            shown_default="",
            file_only=True,
        ),
    ] = ()
    network: Annotated[
        tuple[str, ...],
        option(
            "a network (`192.168.0.0/16`) or an address; for targets that a program names by their address",
            metavar="NETWORK",
            live="drains",
            shown_default="",
            file_only=True,
        ),
    ] = ()
    network_list: Annotated[
        tuple[str, ...],
        option(
            "a file of networks and addresses, one a line",
            metavar="FILE",
            path=True,
            live="drains",
            shown_default="",
            file_only=True,
        ),
    ] = ()
    port: Annotated[
        tuple[str, ...],
        option(
            "a port, or a range of ports: `8000-8099`", metavar="PORT", live="drains", shown_default="", file_only=True
        ),
    ] = ()


RULE_TABLE: Schema = (RuleTable,)
