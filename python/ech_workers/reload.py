"""What a new configuration changes in a running program: at once, for what is new, or only after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ech_workers.options.schema import options_of

if TYPE_CHECKING:
    from ech_workers.options.schema import Schema

__all__ = ["Difference", "difference"]


class Difference(msgspec.Struct, frozen=True):
    """The options that changed, by what it takes for the change to count."""

    applied: tuple[str, ...] = ()
    """They count at once."""
    drains: tuple[str, ...] = ()
    """What is open goes on as it was; what is new goes by the new value."""
    sessions: tuple[str, ...] = ()
    """Sessions that begin from now on go by the new value. A new connection in an open session goes by that session's value."""
    restart: tuple[str, ...] = ()
    """Only a new process takes them: the running one keeps its own."""

    def __bool__(self) -> bool:
        return bool(self.applied or self.drains or self.sessions or self.restart)

    def line(self) -> str:
        """In words, in one line."""
        parts = [
            f"{label}: {', '.join(names)}"
            for label, names in (
                ("applied", self.applied),
                ("applied to what is new", self.drains),
                ("applied to new sessions", self.sessions),
                ("needs a restart", self.restart),
            )
            if names
        ]
        return "; ".join(parts) or "nothing changed"


# What the configuration calls otherwise than the options that it is made from.
_OPTIONS = {
    "mode": "yamux",
    "server_ips": "server_ip",
    "resolvers": "doh_server",
    "ca_pem": "ca_file",
    "servers": "server",
    "status_hosts": "status_host",
    "certificates": "cert",
    "tokens": "token",
    "labels": "token",
}


def difference(schema: Schema, old: msgspec.Struct, new: msgspec.Struct) -> Difference:
    """What changed between two configurations of one side: by what they mean, so that a token file with another content
    is a change, and another file with the same content is none."""
    declared = options_of(schema)
    found: dict[str, list[str]] = {"now": [], "drains": [], "sessions": [], "restart": []}
    for name in old.__struct_fields__:
        if _meaning(name, old) == _meaning(name, new):
            continue
        if name == "rules":
            found["drains"].append("rule")
            continue
        option = _OPTIONS.get(name, name)
        if option in declared and option not in found[declared[option].live]:
            found[declared[option].live].append(option)
    return Difference(*(tuple(found[live]) for live in ("now", "drains", "sessions", "restart")))


def _meaning(name: str, config: msgspec.Struct) -> Any:
    # Of a file its contents count, which are beside it.
    return None if name == "ca_file" else getattr(config, name)
