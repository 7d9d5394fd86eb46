"""Several made-up servers for a supervisor, in a made-up world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ech_workers.config import ServerAddress, UpstreamConfig

from .world import World, https, start

if TYPE_CHECKING:
    from ech_workers.supervisor import Supervisor


def server(name: str, **changes: Any) -> UpstreamConfig:
    fields: dict[str, Any] = {"name": name, "server": ServerAddress(f"{name}.test", 443, "/ws"), "token": name}
    return UpstreamConfig(**{**fields, **changes})


def begin(world: World, *servers: UpstreamConfig, **changes: Any) -> Supervisor:
    for found in servers:
        host = found.server.host
        world.zone[host, "HTTPS"] = [https(found.name)]
        world.zone[host, "A"] = ["60 192.0.2.1"]
    return start(world, server=servers[0].server, servers=servers, **changes)


def roles(supervisor: Supervisor) -> list[str]:
    return [upstream.role for upstream in supervisor.status().upstreams]


PAIR = (server("one"), server("two", priority=1))
