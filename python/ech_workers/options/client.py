"""The options of ``ech-workers proxy`` and of ``Tunnel``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ech_workers.options.schema import Schema, option

__all__ = [
    "DEFAULT_PROFILE",
    "Alpn",
    "ClientSchema",
    "ClientTuning",
    "Control",
    "LogFormat",
    "LogLevel",
    "LogTuning",
    "Policy",
    "Reply",
    "ServerTable",
    "Standby",
    "StatusHost",
    "StatusToken",
    "UpstreamSchema",
]

DEFAULT_PROFILE = "firefox"

Alpn = Literal["auto", "http/1.1"]
Policy = Literal["priority", "fastest", "spread"]
Reply = Literal["optimistic", "confirmed"]
Standby = Literal["warm", "cold"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json", "journal"]

# Seconds.
_DAY = 86400.0
_TEXTS = "str | Sequence[str] | None"
_PORTS = "str | int | Sequence[str | int] | None"
_ADDRESSES = "str | IPv4Address | IPv6Address | Sequence[str | IPv4Address | IPv6Address] | None"
_PATH = "str | Path | None"


class UpstreamSchema(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a server: on the command line of the only one, in a file of each ``[[server]]``."""

    server: Annotated[
        str | None,
        option(
            "the server: its name, which ECH hides, and the path of the upgrade; or the name of a `[[server]]` of the"
            " configuration file, or a link. May be given several times, each with what is said of it alone:"
            " `HOST/PATH,token-file=FILE,priority=1`",
            metavar="HOST[:PORT]/PATH",
            live="drains",
            repeats=True,
            shown_default="required",
        ),
    ] = None
    token: Annotated[
        str | None,
        option(
            "the token that the server expects; other users of this machine see command lines, so better by a file or the"
            " environment",
            metavar="TEXT",
            secret=True,
            live="drains",
            replaces=("token_file",),
        ),
    ] = None
    token_file: Annotated[
        str | None,
        option(
            "read the token from a file; it may have comment lines (`#`)",
            metavar="FILE",
            path=True,
            live="drains",
            replaces=("token",),
            api=_PATH,
        ),
    ] = None
    ech: Annotated[
        bool,
        option(
            "Encrypted Client Hello; without it the server's name goes over the network in clear",
            live="drains",
            off="no-ech",
            replaces=("ech_config", "ech_domain", "ech_bootstrap"),
        ),
    ] = True
    yamux: Annotated[
        bool,
        option(
            "many connections over one session, or a WebSocket for each connection (for Workers)",
            live="drains",
            off="no-yamux",
        ),
    ] = True
    server_ip: Annotated[
        tuple[str, ...],
        option(
            "the server's address, a network (`192.0.2.0/24`) or a file of them (`@FILE`); may be given several times; nothing is"
            " looked up then, and of many a few are tried at a time",
            metavar="IP",
            live="drains",
            shown_default="looked up",
            api=_ADDRESSES,
        ),
    ] = ()
    ech_config: Annotated[
        str | None,
        option(
            "the ECHConfigList; a file may hold it raw, in base64, or as RFC 9934 PEM, but not with a private key",
            metavar="BASE64|@FILE",
            live="drains",
            shown_default="looked up",
            replaces=("ech", "ech_domain"),
            api="str | bytes | None",
        ),
    ] = None
    ech_domain: Annotated[
        str | None,
        option(
            "whose HTTPS record has the ECH configuration (behind Cloudflare: `cloudflare-ech.com`)",
            metavar="NAME",
            live="drains",
            shown_default="the server's",
            replaces=("ech", "ech_config"),
        ),
    ] = None
    ech_bootstrap: Annotated[
        str | None,
        option(
            "when no resolver has a configuration: the server itself is asked for its own, under its provider's public"
            " name (with a made-up key, which it must reject with its true configurations)",
            metavar="PUBLIC_NAME",
            live="drains",
            shown_default="off",
            replaces=("ech",),
        ),
    ] = None
    profile: Annotated[
        str,
        option(
            "the browser whose TLS hello is sent; `firefox`: the newest one that was captured",
            metavar="NAME",
            live="drains",
        ),
    ] = DEFAULT_PROFILE
    alpn: Annotated[
        Alpn,
        option(
            "as the browser does it (h2 is offered first), or the WebSocket hello from the first contact on",
            live="drains",
        ),
    ] = "auto"


class ServerTable(UpstreamSchema, frozen=True, kw_only=True):
    """One ``[[server]]`` of a configuration file. What a table does not say is taken from above the first one."""

    name: Annotated[
        str | None,
        option(
            "for log lines, metrics, rules and `--server`", metavar="TEXT", live="drains", shown_default="its address"
        ),
    ] = None
    priority: Annotated[
        int,
        option(
            "the servers with the lowest number carry the traffic, the next ones when none of those can",
            low=0,
            high=1000,
            live="drains",
            metavar="N",
        ),
    ] = 0
    weight: Annotated[
        int, option("the share among servers of the same priority", low=1, high=1000, live="drains", metavar="N")
    ] = 1


class LogTuning(msgspec.Struct, frozen=True, kw_only=True):
    """How log lines are written, and how many. The same for both sides. Times are seconds, sizes bytes."""

    log_level: Annotated[LogLevel, option("the least level of log lines", live="now")] = "info"
    log_format: Annotated[
        LogFormat,
        option(
            "text; json: an object a line; journal: text without the time, with the priority that systemd reads; auto: text,"
            " and journal where standard error is systemd's journal",
            live="now",
        ),
    ] = "auto"
    log_targets: Annotated[
        bool,
        option(
            "whether log lines may name targets; without, lines about single targets are left out",
            live="now",
            off="no-log-targets",
        ),
    ] = True
    log_max_size: Annotated[
        int,
        option(
            "begin a new log file at this size; 0: never", kind="size", low=0, high=1 << 40, live="now", metavar="SIZE"
        ),
    ] = 0
    log_max_age: Annotated[
        float,
        option("begin a new log file at this age; 0: never", kind="seconds", low=0.0, high=366 * _DAY, live="now"),
    ] = 0.0
    log_keep: Annotated[
        int,
        option("how many old log files are kept: FILE.1 is the youngest", low=0, high=1000, live="now", metavar="N"),
    ] = 5


Control = Annotated[
    str | None,
    option(
        "the Unix socket for `status`, `reload` and the like; empty: none",
        metavar="FILE",
        path=True,
        shown_default="in the runtime directory",
        api=_PATH,
    ),
]
"""How a running program is asked and told things."""

StatusHost = Annotated[
    tuple[str, ...],
    option(
        "a name by which programs may ask for the status port (Prometheus in another container: `proxy`), beside"
        " addresses and localhost; may be given several times",
        metavar="NAME",
        live="now",
        api=_TEXTS,
    ),
]

StatusToken = Annotated[
    str | None,
    option(
        "what whoever asks a status port on another address than loopback must give, as `Authorization: Bearer TOKEN` or"
        " as `?token=TOKEN`; such a port is not opened without one",
        metavar="TEXT",
        secret=True,
        live="now",
    ),
]

LogFile = Annotated[
    str | None,
    option(
        "append log lines to a file; one that is renamed (logrotate) is followed by a new one; a full disk costs the"
        " lines that it does not take, and is said once on standard error",
        metavar="FILE",
        path=True,
        live="now",
        shown_default="standard error",
        api=_PATH,
    ),
]
"""Where log lines go."""


class ClientTuning(LogTuning, frozen=True, kw_only=True):
    """The options that go to the engine as they are. Times are seconds, sizes bytes."""

    sessions: Annotated[
        int,
        option(
            "sessions that are kept up; new connections go to one without bulk transfers, the least busy of these, and each"
            " session may use a core of its own; 0: one, and up to four while there are bulk transfers or the server takes no"
            " more connections on one",
            low=0,
            high=64,
            metavar="N",
            live="now",
            shown_default="0: as many as help",
        ),
    ] = 0
    policy: Annotated[
        Policy,
        option(
            "which of several servers new connections go to: those of the lowest priority number that work; the one with the"
            " shortest round trip; or all of them, shared by weight",
            live="now",
        ),
    ] = "priority"
    standby: Annotated[
        Standby,
        option(
            "the servers that new connections do not go to: kept ready with a session each (a lost server costs no time), or"
            " connected when the others have failed",
            live="now",
        ),
    ] = "warm"
    reply: Annotated[
        Reply,
        option(
            "answer local programs at once (a round trip less; a failure is a reset then), or when the target is reached",
            live="drains",
        ),
    ] = "optimistic"
    open_timeout: Annotated[
        float,
        option("how long a local connection waits for a session", kind="seconds", low=0.001, high=_DAY, live="drains"),
    ] = 8.0
    idle_timeout: Annotated[
        float, option("when a connection without traffic ends", kind="seconds", low=0.001, high=_DAY, live="drains")
    ] = 600.0
    max_connections: Annotated[
        int, option("local connections at a time", low=1, high=1_000_000, metavar="N", live="drains")
    ] = 4096
    memory_limit: Annotated[
        int,
        option(
            "what the receive windows of all streams may grow by together, beyond the 256 KiB that each begins with",
            kind="size",
            low=16 << 20,
            high=1 << 40,
            metavar="SIZE",
            live="now",
        ),
    ] = 256 << 20


class ClientSchema(ClientTuning, frozen=True, kw_only=True):
    """Everything that ``ech-workers proxy`` takes beside what is said of a server."""

    log_file: LogFile = None
    control: Control = None

    listen: Annotated[
        tuple[str, ...],
        option(
            "the SOCKS5 and HTTP port; may be given several times; a bare port is on 127.0.0.1; port 0 takes a free one",
            metavar="ADDR:PORT",
            live="drains",
            api=_PORTS,
        ),
    ] = ("127.0.0.1:1080",)
    username: Annotated[
        str | None,
        option(
            "what local programs must give, with `--password` (SOCKS5 RFC 1929, HTTP Basic)",
            metavar="TEXT",
            live="drains",
        ),
    ] = None
    password: Annotated[
        str | None, option("better set in the environment or in a file", metavar="TEXT", secret=True, live="drains")
    ] = None
    doh_server: Annotated[
        tuple[str, ...],
        option(
            "a DoH resolver instead of the built-in ones (Cloudflare, Quad9, Google, AdGuard); may be given several times",
            metavar="URL",
            live="drains",
            shown_default="built in",
            replaces=("doh_ip",),
            api=_TEXTS,
        ),
    ] = ()
    doh_ip: Annotated[
        tuple[str, ...],
        option(
            "its address. One resolver may have several; several resolvers take one each, in order",
            metavar="IP",
            live="drains",
            shown_default="built in, or in the URL",
            api=_ADDRESSES,
        ),
    ] = ()
    ca_file: Annotated[
        str | None,
        option(
            "authorities to trust beside the system's, for the server and the resolvers; a file, or the PEM text itself",
            metavar="PEM",
            path=True,
            live="drains",
            api=_PATH,
        ),
    ] = None
    cache_dir: Annotated[
        str | None,
        option(
            "where ECH configurations are kept; empty: in memory alone",
            metavar="DIR",
            path=True,
            live="now",
            shown_default="the user's cache directory",
            api=_PATH,
        ),
    ] = None
    status_listen: Annotated[
        tuple[str, ...],
        option(
            "a status port: page, feed, `/healthz`, `/metrics`; on 127.0.0.1 unless an address is given; may be given"
            " several times",
            metavar="[ADDR:]PORT",
            live="now",
            shown_default="off",
            api=_PORTS,
        ),
    ] = ()
    status_host: StatusHost = ()
    status_token: StatusToken = None


CLIENT: Schema = (UpstreamSchema, ClientSchema)
"""Everything that ``ech-workers proxy`` takes."""

SERVER_TABLE: Schema = (ServerTable,)
