"""The options of ``ech-workers server``."""

from __future__ import annotations

from typing import Annotated

from ech_workers.options.client import Control, LogFile, LogTuning, StatusHost, StatusToken
from ech_workers.options.schema import Schema, option

__all__ = ["SERVER", "ServerSchema", "ServerTuning"]

# Seconds.
_DAY = 86400.0
_FILES = "str | Path | Sequence[str | Path]"
_PATH = "str | Path | None"


class ServerTuning(LogTuning, frozen=True, kw_only=True):
    """The options that go to the native server as they are. Times are seconds, sizes bytes."""

    allow_private_targets: Annotated[
        bool,
        option(
            "whether loopback, private and link-local targets may be reached",
            off="refuse-private-targets",
            live="drains",
        ),
    ] = False
    max_sessions: Annotated[
        int,
        option(
            "sessions at a time; when there are so many, one more takes the place of one without streams, and is refused if its"
            " address has none",
            low=1,
            high=10_000_000,
            metavar="N",
            live="drains",
        ),
    ] = 10000
    max_streams: Annotated[
        int, option("streams of one session", low=1, high=1_000_000, metavar="N", live="sessions")
    ] = 1024
    memory_limit: Annotated[
        int,
        option(
            "what all sessions together may hold for targets that do not take it; one session may hold a sixth of it",
            kind="size",
            low=16 << 20,
            high=1 << 40,
            metavar="SIZE",
            live="now",
        ),
    ] = 256 << 20
    connect_timeout: Annotated[
        float, option("for reaching a target", kind="seconds", low=0.001, high=_DAY, live="drains")
    ] = 10.0
    idle_timeout: Annotated[
        float, option("when a stream without traffic ends", kind="seconds", low=0.001, high=_DAY, live="sessions")
    ] = 600.0
    drain: Annotated[
        float,
        option(
            "how long open streams may go on after SIGTERM or SIGINT; a second signal ends them",
            kind="seconds",
            low=0.0,
            high=_DAY,
            live="now",
        ),
    ] = 30.0
    workers: Annotated[
        int,
        option(
            "threads that carry traffic, and as many that make handshakes; 0: as many as there are cores",
            low=0,
            high=256,
            metavar="N",
        ),
    ] = 0


class ServerSchema(ServerTuning, frozen=True, kw_only=True):
    """Everything that ``ech-workers server`` takes."""

    log_file: LogFile = None
    control: Control = None

    status_listen: Annotated[
        tuple[str, ...],
        option(
            "a listener of its own for `/healthz` (it runs), `/readyz` (clients can use it) and `/metrics`; on 127.0.0.1 unless"
            " an address is given; may be given several times",
            metavar="[ADDR:]PORT",
            live="now",
            shown_default="off",
            api="str | int | Sequence[str | int] | None",
        ),
    ] = ()
    status_host: StatusHost = ()
    status_token: StatusToken = None
    listen: Annotated[
        str | None,
        option(
            "the address to listen on; port 0 takes a free one; `listening on ADDR:PORT` says which. `systemd` takes the socket that"
            " systemd hands over (socket activation)",
            metavar="ADDR:PORT",
            shown_default="required",
        ),
    ] = None
    cert: Annotated[
        tuple[str, ...],
        option(
            "the certificate chain; several pairs are chosen by name. The first is shown to everybody who asks for none of"
            " them, so it should be the public name's and not the hidden one's. There must be one for each public name."
            " Watched: changed files count within a second, and while they are wrong the pair in use stays. One that has"
            " expired, is not valid yet or ends within 14 days is reported at the start and once a day",
            metavar="PEM",
            live="now",
            path=True,
            shown_default="required",
            replaces=("key",),
            api=_FILES,
        ),
    ] = ()
    key: Annotated[
        tuple[str, ...],
        option(
            "its private key, in the same order",
            metavar="PEM",
            path=True,
            live="now",
            shown_default="required",
            api=_FILES,
        ),
    ] = ()
    ech_keys: Annotated[
        str | None,
        option(
            "every `*.pem` in it (RFC 9934, of any maker). Watched: a new, changed or removed file counts within a second,"
            " running connections stay; a file that cannot be read is tried again until it can be",
            metavar="DIR",
            path=True,
            live="now",
            shown_default="no ECH",
            api=_PATH,
        ),
    ] = None
    ticket_keys: Annotated[
        str | None,
        option(
            "session ticket keys that several servers share, so that clients resume at any of them: every `*.key` in it, of 80"
            " random bytes. The newest file seals, the others open. Watched as the ECH keys are",
            metavar="DIR",
            path=True,
            shown_default="keys of this process alone",
            api=_PATH,
        ),
    ] = None
    token: Annotated[
        tuple[str, ...],
        option(
            "a token that clients may use; may be given several times; other users of this machine see command lines, so"
            " better by a file. Of one that a reload takes away, sessions end with their last stream",
            metavar="TEXT",
            secret=True,
            live="now",
            shown_default="required",
            api="str | Sequence[str] | None",
        ),
    ] = ()
    token_file: Annotated[
        str | None,
        option(
            "tokens, one a line; what stands behind ` # ` is what the status and the metrics call it",
            metavar="FILE",
            path=True,
            live="now",
            shown_default="required",
            api=_PATH,
        ),
    ] = None
    path: Annotated[str, option("the path of the upgrade; `/` takes every path", metavar="PATH", live="now")] = "/"
    decoy: Annotated[
        str | None,
        option(
            "the page for everyone else", metavar="HTML", path=True, live="now", shown_default="a plain page", api=_PATH
        ),
    ] = None
    public_healthz: Annotated[
        bool,
        option(
            "whether `/healthz` is answered with `ok` on the public port, for load balancers that look there: it tells this"
            " server from a web server",
            live="now",
            off="no-public-healthz",
        ),
    ] = False


SERVER: Schema = (ServerSchema,)
