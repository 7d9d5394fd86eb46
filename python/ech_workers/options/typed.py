"""The options of ``ClientConfig.build``, ``Tunnel`` and ``ServerConfig.build``, for callers that hand them on.

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


class ClientOptions(TypedDict, total=False):
    """The options of ``ech-workers proxy`` beside ``server``."""

    token: str | None
    token_file: str | Path | None
    listen: str | int | Sequence[str | int] | None
    username: str | None
    password: str | None
    ech: bool
    yamux: bool
    server_ip: str | IPv4Address | IPv6Address | Sequence[str | IPv4Address | IPv6Address] | None
    ech_config: str | bytes | None
    ech_domain: str | None
    ech_bootstrap: str | None
    doh_server: str | Sequence[str] | None
    doh_ip: str | IPv4Address | IPv6Address | Sequence[str | IPv4Address | IPv6Address] | None
    ca_file: str | Path | None
    profile: str
    alpn: str
    sessions: int
    policy: str
    standby: str
    reply: str
    open_timeout: float | timedelta
    idle_timeout: float | timedelta
    max_connections: int
    memory_limit: int | str
    cache_dir: str | Path | None
    status_listen: str | int | Sequence[str | int] | None
    status_host: str | Sequence[str] | None
    status_token: str | None
    control: str | Path | None
    log_level: str
    log_file: str | Path | None
    log_format: str
    log_targets: bool
    log_max_size: int | str
    log_max_age: float | timedelta
    log_keep: int
    rule: Sequence[Mapping[str, object]] | None


class ServerOptions(TypedDict, total=False):
    """The options of ``ech-workers server``."""

    listen: str | None
    cert: str | Path | Sequence[str | Path]
    key: str | Path | Sequence[str | Path]
    ech_keys: str | Path | None
    ticket_keys: str | Path | None
    token: str | Sequence[str] | None
    token_file: str | Path | None
    path: str
    decoy: str | Path | None
    public_healthz: bool
    allow_private_targets: bool
    max_sessions: int
    max_streams: int
    memory_limit: int | str
    connect_timeout: float | timedelta
    idle_timeout: float | timedelta
    drain: float | timedelta
    workers: int
    status_listen: str | int | Sequence[str | int] | None
    status_host: str | Sequence[str] | None
    status_token: str | None
    control: str | Path | None
    log_level: str
    log_file: str | Path | None
    log_format: str
    log_targets: bool
    log_max_size: int | str
    log_max_age: float | timedelta
    log_keep: int
