"""The native core: TLS with ECH, WebSocket, yamux, the relay, and both ends of the tunnel.

Objects here are frozen; times are seconds, sizes bytes. Calls that wait release the GIL.
Defaults that PyO3 cannot show (`...` at run time) stand in comments or docstrings.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, final

__version__: Final[str]
BORINGSSL_REVISION: Final[str]
COMMIT: Final[str | None]
"""The commit that a release was built of."""
PROFILES: Final[tuple[str, ...]]

# ---------------------------------------------------------------- failures

@final
class Failure:
    """Why something failed, for a person and for a program."""

    @property
    def layer(
        self,
    ) -> Literal["resolver", "tcp", "tls", "ech", "certificate", "websocket", "token", "yamux", "target", "local"]: ...
    @property
    def code(self) -> str:
        """A stable word: tcp-refused, tcp-timeout, tcp-unreachable, tcp-reset, tcp-failed, tls-alert, tls-reset (reset or closed right after the hello),
        tls-version, tls-not-spoken, tls-unsupported, tls-server-name, tls-timeout, tls-failed, ech-rejected (with retry_configs if any were authenticated), ech-disabled (rejected, none handed over),
        ech-not-accepted, ech-config-invalid, certificate-unknown-issuer, certificate-expired, certificate-not-yet-valid, certificate-name,
        certificate-invalid, websocket-status, websocket-redirect, websocket-busy (429 or 503), server-full, cdn-challenge, cdn-refused, cdn-origin (a CDN does not reach the
        server), websocket-protocol, websocket-closed, websocket-timeout, token-rejected, yamux-ping-timeout, yamux-go-away,
        yamux-protocol, closed (clean end by the peer), retired, internal (an error in this program; the log says where), http-status, http-failed, http-too-large, shutdown,
        target-refused, target-unreachable, target-not-found, target-timeout, target-not-allowed, target-blocked (by a rule of this side), target-failed (the server answered ERROR:..., the text is in message), no-session."""
    @property
    def message(self) -> str:
        """One line: what failed and why, without advice."""
    @property
    def detail(self) -> str | None:
        """What a developer would want beside it (the TLS library's own text, the first bytes of a page); None if nothing more is known."""
    @property
    def retry_configs(self) -> bytes | None:
        """An authenticated ECHConfigList, with ech-rejected only."""
    @property
    def retry_after(self) -> float | None:
        """So many seconds (at most a day) the server, or a CDN before it, asks to wait before the next try (Retry-After)."""
    @property
    def ech_rejected(self) -> bool:
        """The server rejected ECH in this handshake; a certificate that failed in it is the public name's."""

# ---------------------------------------------------------------- the client

@final
class DialPlan:
    """How to reach one server; everything one dial needs is in it."""

    def __new__(
        cls,
        *,
        server_name: str,
        port: int,
        path: str,
        token: str | None,
        addresses: Sequence[str],
        ech: bytes | None,
        profile: str = "firefox",
        alpn: Literal["auto", "http/1.1"] = "auto",
        h2_known: bool = False,
        mode: Literal["yamux", "simple"] = "yamux",
        tcp_timeout: float = 5.0,
        handshake_timeout: float = 10.0,
        authority_port: int | None = None,
        upstream: int = 0,
    ) -> DialPlan:
        """upstream: the number of the server, which events and snapshots carry. addresses: IP literals, tried in turn with a small head start. ech: an ECHConfigList as the HTTPS record gives it; None is --no-ech, the name goes in clear.
        h2_known: the server is known to choose h2, so start with the WebSocket hello.
        authority_port: the origin's port, when the HTTPS record names another one to connect to: the Host header keeps it (RFC 9460 section 9). Raises ValueError naming the field."""

@final
class FetchPlan:
    """One HTTPS exchange with a resolver: the profile's hello (no ECH) and header fields, HTTP/2 or HTTP/1.1 as the server chooses."""

    def __new__(
        cls,
        *,
        server_name: str,
        port: int,
        addresses: Sequence[str],
        path: str,
        method: Literal["GET", "POST"] = "POST",
        body: bytes = ...,  # b""
        profile: str = "firefox",
        alpn: Literal["auto", "http/1.1"] = "auto",
        timeout: float = 5.0,
        max_body: int = 65536,
    ) -> FetchPlan:
        """server_name may be an IP literal (then the certificate must carry that address). path includes the query."""

@final
class SessionUp:
    """A session (yamux), or the first warm connection (simple), is ready."""

    @property
    def upstream(self) -> int: ...
    @property
    def dial(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def ech(self) -> Literal["accepted", "off"]: ...
    @property
    def public_name(self) -> str | None:
        """The outer name that the network saw; None with ECH off."""
    @property
    def profile(self) -> str: ...
    @property
    def hello(self) -> Literal["first-contact", "websocket"]: ...
    @property
    def alpn(self) -> str | None: ...
    @property
    def cipher(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def resumed(self) -> bool: ...
    @property
    def tcp_ms(self) -> float: ...
    @property
    def tls_ms(self) -> float: ...
    @property
    def websocket_ms(self) -> float: ...
    @property
    def features(self) -> tuple[str, ...]:
        """What the server announced in its 101 (our own server); empty for a deployed one."""
    @property
    def retried(self) -> bool:
        """ECH was rejected first, and the authenticated retry configurations were used."""

@final
class SessionLost:
    """A session ended, or takes no new streams any more (code yamux-go-away; a loss of its open streams is reported after that)."""

    @property
    def upstream(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def failure(self) -> Failure: ...
    @property
    def age(self) -> float: ...
    @property
    def received(self) -> int:
        """Bytes of payload that came over it."""

@final
class SessionsFull:
    """A stream would have gone to this server, and each of its sessions has as many streams as the server allows. Comes again once a second while that is so."""

    @property
    def upstream(self) -> int: ...

@final
class DialFailed:
    """A dial asked for with Engine.dial, or one made natively for a connection in simple mode (dial is 0 then), failed."""

    @property
    def upstream(self) -> int: ...
    @property
    def dial(self) -> int: ...
    @property
    def failure(self) -> Failure: ...

@final
class EchLearned:
    """Authenticated retry configurations came from the server: store them."""

    @property
    def upstream(self) -> int: ...
    @property
    def server_name(self) -> str: ...
    @property
    def configs(self) -> bytes: ...

@final
class H2Chosen:
    """The server chose h2 for the first-contact hello; remember it (DialPlan.h2_known)."""

    @property
    def upstream(self) -> int: ...
    @property
    def server_name(self) -> str: ...

@final
class BulkChanged:
    """A session has another number of bulk streams (``streams``): those that move more than 512 KiB in five seconds.

    ``growing``: the server is far (20 ms to connect), and a stream has moved more than 24 KiB in five seconds."""

    @property
    def upstream(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def streams(self) -> int: ...
    @property
    def growing(self) -> bool: ...

@final
class Echoed:
    """A server was to send back 64 KiB."""

    @property
    def echo(self) -> int: ...
    @property
    def upstream(self) -> int: ...
    @property
    def address(self) -> str | None:
        """Where a connection of its own went to; None on a session, and where there was no connection."""
    @property
    def outcome(self) -> Literal["passed", "stopped", "failed", "busy"]:
        """passed: everything came back; stopped: it did not, and nothing else came for 5 s; failed: it says nothing of the way (the server does not do this, the session ended, it took over 60 s); busy: nothing was sent, because the session has streams."""
    @property
    def ms(self) -> float | None:
        """From the first byte sent to the last one back, if everything came back."""
    @property
    def received(self) -> int:
        """Bytes of payload that have come over the session by then, this one's or others'."""

@final
class Unreached:
    """A server answered that it cannot reach a target, and the stream goes to another server."""

    @property
    def upstream(self) -> int: ...
    @property
    def kind(self) -> str:
        """The kind of failure: platform-address, not-allowed, host-unreachable, timed-out, ..."""
    @property
    def reason(self) -> str:
        """The server's words, which name the target."""
    @property
    def tried(self) -> list[int]:
        """Every server that has said so to this stream."""

@final
class Fetched:
    @property
    def fetch(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> list[tuple[str, str]]: ...
    @property
    def body(self) -> bytes: ...
    @property
    def http_version(self) -> Literal["h2", "http/1.1"]: ...
    @property
    def ms(self) -> float: ...

@final
class FetchFailed:
    @property
    def fetch(self) -> int: ...
    @property
    def failure(self) -> Failure: ...

@final
class NameWanted:
    """The addresses of this name (lower case, no final dot) are wanted for connections that go straight to it: answer with
    Engine.resolved. Asked again after 3 s without an answer."""

    @property
    def name(self) -> str: ...

@final
class Woken:
    """Engine.wake was called: another thread wants the loop's attention."""

@final
class LogLine:
    """A line for Python's logging. level as in logging (10, 20, 30, 40). layer and code as in ech_workers.errors, session and upstream (the server's number, on the client) by
    number; each None where the line is not about one."""

    @property
    def level(self) -> int: ...
    @property
    def target(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def layer(self) -> str | None: ...
    @property
    def code(self) -> str | None: ...
    @property
    def session(self) -> int | None: ...
    @property
    def upstream(self) -> int | None: ...

type Event = (
    SessionUp
    | SessionLost
    | SessionsFull
    | DialFailed
    | EchLearned
    | H2Chosen
    | BulkChanged
    | Echoed
    | Unreached
    | Fetched
    | FetchFailed
    | NameWanted
    | Woken
    | LogLine
)

@final
class SessionSnapshot:
    @property
    def upstream(self) -> int: ...
    @property
    def heard_ago(self) -> float:
        """Seconds since the last byte from the server."""
    @property
    def unanswered(self) -> float | None:
        """Seconds since the first ping after which nothing came from the server; None when none is waited for."""
    @property
    def session(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def state(self) -> Literal["up", "retiring"]: ...
    @property
    def streams(self) -> int: ...
    @property
    def streams_total(self) -> int: ...
    @property
    def age(self) -> float: ...
    @property
    def rtt_ms(self) -> float | None: ...
    @property
    def path_ms(self) -> float | None:
        """The round trip of the path, with little of the queue that the session's own bytes make on it."""
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...

@final
class UpstreamSnapshot:
    """What was counted for one server so far. up: from local programs to targets; down: the other way."""

    @property
    def upstream(self) -> int:
        """The number of the server."""
    @property
    def dials_total(self) -> int: ...
    @property
    def dials_failed(self) -> int: ...
    @property
    def ech_retries(self) -> int: ...
    @property
    def connect_ms(self) -> float | None:
        """How long the server took to be connected to in the last dial: a round trip, or more if a packet was lost."""
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...

@final
class Snapshot:
    """The engine's counters at one moment. up: from local programs to targets; down: the other way."""

    @property
    def uptime(self) -> float: ...
    @property
    def connections(self) -> int: ...
    @property
    def connections_total(self) -> int: ...
    @property
    def connections_failed(self) -> int: ...
    @property
    def targets_failed(self) -> int:
        """Those of them whose target the server could not reach."""
    @property
    def last_target_failure(self) -> str | None:
        """The last such target, and why; an optimistic reply told nobody."""
    @property
    def connections_waiting(self) -> int: ...
    @property
    def direct_total(self) -> int:
        """Connections so far that went straight to their target, by a rule."""
    @property
    def blocked_total(self) -> int:
        """Connections so far that a rule has blocked."""
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...
    @property
    def dials_total(self) -> int: ...
    @property
    def dials_failed(self) -> int: ...
    @property
    def ech_retries(self) -> int: ...
    @property
    def upstreams(self) -> tuple[UpstreamSnapshot, ...]:
        """What of these belongs to which server, of those that were dialled."""
    @property
    def sessions(self) -> tuple[SessionSnapshot, ...]: ...

@final
class ConnectionSnapshot:
    """One local connection, or stream of the API, at one moment."""

    @property
    def id(self) -> int:
        """Never used twice."""
    @property
    def target(self) -> str:
        """host:port."""
    @property
    def protocol(self) -> Literal["socks5", "connect", "http", "api"]: ...
    @property
    def way(self) -> Literal["waiting", "tunnel", "direct"]: ...
    @property
    def session(self) -> int | None: ...
    @property
    def upstream(self) -> int | None: ...
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...
    @property
    def age(self) -> float: ...

@final
class Rule:
    """Conditions, and the way of the connections that meet them: one on the host, if there are any, and one on the port, if there are any."""

    def __new__(
        cls,
        to: Literal["tunnel", "direct", "block", "server"],
        *,
        server: int = 0,
        domains: Sequence[str] = ...,  # ()
        exact_domains: Sequence[str] = ...,  # ()
        keywords: Sequence[str] = ...,  # ()
        domain_lists: Sequence[bytes] = ...,  # ()
        networks: Sequence[str] = ...,  # ()
        network_lists: Sequence[bytes] = ...,  # ()
        ports: Sequence[str] = ...,  # ()
    ) -> Rule:
        """server: the number of the only server that may carry it, with to="server". domains: with all below them. Lists have an entry a line, `#` begins a
        comment. ports: numbers, or ranges (8000-8099). Raises ech_workers.arguments.ArgumentError."""

@final
class EngineConfiguration:
    """Everything that may be changed while an Engine runs, checked when it is made."""

    def __new__(
        cls,
        *,
        ca_pem: Sequence[bytes] = ...,  # ()
        system_roots: bool = True,
        rules: Sequence[Rule] = ...,  # ()
        max_connections: int = 4096,
        open_timeout: float = 8.0,
        idle_timeout: float = 600.0,
        memory_limit: int = 268435456,
        reply: Literal["optimistic", "confirmed"] = "optimistic",
    ) -> EngineConfiguration:
        """ca_pem: trusted beside the system's roots (system_roots). rules: which way connections go: the first that matches decides; without one through the tunnel.
        max_connections: local ones at a time. open_timeout: how long one waits for a session. Raises
        ech_workers.arguments.ArgumentError."""

@final
class Engine:
    """The client: local listeners, sessions, the relay. Owns its threads; close() ends them."""

    def __new__(
        cls,
        configuration: EngineConfiguration,
        *,
        local_handshake_timeout: float = 10.0,
        half_closed_timeout: float = 60.0,
        ping_interval: float = 28.0,
        ping_timeout: float = 10.0,
        receive_window_max: int = 16777216,
        workers: int = 1,
        log_level: int = 20,
    ) -> Engine:
        """workers: threads that carry traffic, no more than the process has cores. Raises ValueError."""
    def apply(self, configuration: EngineConfiguration) -> None:
        """Goes by another configuration: all of it, for the connections, sessions, dials and exchanges that begin from now on; memory_limit counts at once.
        While ca_pem and system_roots stay the same, so do the session tickets. It cannot fail, but for EngineClosed."""
    def listen(self, host: str, port: int, *, username: str | None = None, password: str | None = None) -> Listener:
        """Opens a SOCKS5/HTTP port. Raises OSError (EADDRINUSE, ...) with the address in it."""
    def set_plan(self, plan: DialPlan | None, upstream: int = 0) -> None:
        """The plan by which simple mode dials for each connection that goes to this server. One of yamux mode is as none."""
    def route(self, tiers: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Which servers new streams go to: numbers with weights. The first tier with a session (in simple mode: with a plan) takes them; within a tier the session with the
        fewest streams for its weight. Servers that are not named take none. Without a call, all servers are one tier."""
    def dial(self, plan: DialPlan) -> int:
        """Starts a dial; SessionUp or DialFailed with the same number follows. It counts as a session from then on."""
    def retire(self, session: int) -> None:
        """No new streams on this session; it ends when its last stream does (SessionLost with code retired)."""
    def probe(self, session: int | None = None) -> None:
        """Has a session (every session without one) measure its round trip now; one that does not answer in time is lost."""
    def echo(self, session: int, upstream: int) -> int:
        """Has the server of a session (upstream: its number) send back 64 KiB; Echoed with the same number follows. Nothing is sent to a server that has not announced it, nor over a session with streams."""
    def echo_alone(self, plan: DialPlan) -> int:
        """The same over a connection of its own, as simple mode has it."""
    def unavailable(self, reason: str | None, code: str = "") -> None:
        """With a reason: connections that find no session fail at once. None: they wait up to open_timeout. The reason is for
        open_stream alone; local programs are told what the error code stands for, which names neither server nor address."""
    def fetch(self, plan: FetchPlan) -> int:
        """Starts an exchange; Fetched or FetchFailed with the same number follows."""
    def open(
        self, host: str, port: int, timeout: float | None = None, done: Callable[[], object] | None = None
    ) -> Opening:
        """Begins to open a stream to host:port. timeout: seconds for all of it, the wait for a session and the server's answer; None is open_timeout.
        done: called once when that has ended, in a thread of its own, unless it was cancelled. Raises ValueError for a target that cannot be."""
    def resolved(self, name: str, addresses: Sequence[str] | None, ttl: float) -> None:
        """The answer to NameWanted (which may also be an IPv4 address to which there is no route), which holds for ttl seconds: the addresses, the best first; none: the name has none; None: nobody answers for it."""
    def forget_names(self) -> None:
        """What was told by ``resolved`` does not hold any more: the network has changed."""
    def connections(self) -> tuple[ConnectionSnapshot, ...]:
        """Those that are open, the oldest first."""
    def cut(self, connection: int) -> bool:
        """Ends a connection, which both of its sides see as a reset. False: there is none of this number."""
    def next_event(self, timeout: float | None) -> Event | None:
        """The next event; None when timeout passed. Raises EngineClosed after close()."""
    def wake(self) -> None:
        """Makes next_event return Woken; callable from any thread and from signal handlers."""
    def snapshot(self) -> Snapshot: ...
    def close(self, grace: float = 0.0) -> None:
        """Ends listeners and openings at once, streams after at most grace seconds; nothing is left of it then but this object. May be called twice."""

@final
class Listener:
    """An open local port."""

    @property
    def address(self) -> tuple[str, int]: ...
    def close(self) -> None:
        """Closes the port; connections that came by it go on. May be called twice."""

@final
class Opening:
    """A stream that is being opened. Dropped or cancelled, the stream is reset, and nothing stays behind."""

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the opening has ended, for timeout seconds at most; True when it has. Signals are noticed."""
    def result(self) -> tuple[int, StreamEnd]:
        """The file descriptor of a connected stream socket, which the caller owns (``socket.socket(fileno=...)``), and how the stream ended, once it has.
        To be asked for once, when the opening has ended. Raises ech_workers.errors.TunnelError subclasses, and RuntimeError when there is no result (yet)."""
    def cancel(self) -> None:
        """Gives the opening up, or the stream that nobody has taken. May be called twice."""

@final
class StreamEnd:
    """How a stream ended. Whoever reads an end from its socket asks here whether the data had ended."""

    @property
    def reason(self) -> Literal["data", "reset", "session-lost", "idle"] | None:
        """data: all was delivered. None: it has not ended on the other side. Raises EngineClosed in another process."""

# ---------------------------------------------------------------- the server

@final
class ServedSession:
    """One session on a server. Times are seconds, sizes bytes; up is from clients to targets."""

    @property
    def session(self) -> int:
        """Its number, from 1 on, which its log lines have too."""
    @property
    def label(self) -> str:
        """What the operator calls its token."""
    @property
    def peer(self) -> str:
        """The client's address and port."""
    @property
    def mode(self) -> Literal["yamux", "simple"] | None:
        """None while the client has said nothing."""
    @property
    def streams(self) -> int: ...
    @property
    def streams_total(self) -> int: ...
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...
    @property
    def age(self) -> float: ...

@final
class ServerSnapshot:
    @property
    def uptime(self) -> float: ...
    @property
    def sessions(self) -> int: ...
    @property
    def sessions_total(self) -> int: ...
    @property
    def streams(self) -> int: ...
    @property
    def streams_total(self) -> int: ...
    @property
    def streams_failed(self) -> int: ...
    @property
    def echoes_total(self) -> int:
        """Streams to the reserved target, by which clients see how much gets through."""
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...
    @property
    def handshakes_failed(self) -> int: ...
    @property
    def ech_accepted(self) -> int: ...
    @property
    def ech_rejected(self) -> int: ...
    @property
    def ech_absent(self) -> int: ...
    @property
    def ech_by_config(self) -> dict[int, int]:
        """Handshakes that offered ECH, by the configuration id they offered; an id of no key here is a stale (or made up) one."""
    @property
    def tokens_rejected(self) -> int: ...

@final
class ServerConfiguration:
    """Everything that may be changed while a Server runs. Its form is checked when it is made; certificates and keys when it is used."""

    def __new__(
        cls,
        *,
        certificates: Sequence[tuple[bytes, bytes]],
        tokens: Sequence[tuple[str, str]],
        path: str = ...,  # "/"
        decoy: bytes | None = None,
        healthz: bool = False,
        ech_keys: Sequence[tuple[bytes, bool]] = ...,  # ()
        ticket_keys: Sequence[bytes] | None = None,
        allow_private_targets: bool = False,
        max_sessions: int = 10000,
        max_streams: int = 1024,
        memory_limit: int = 268435456,
        connect_timeout: float = 10.0,
        idle_timeout: float = 600.0,
    ) -> ServerConfiguration:
        """certificates: PEM chain and PEM key; the first is the default, the others are chosen by server name. tokens: each with what the operator calls it. path "/" accepts the
        upgrade on every path. healthz: /healthz is answered on the public port. ech_keys: RFC 9934 PEM files, each with whether it is sent as a retry configuration (at least one must be).
        ticket_keys: 80 bytes each (16 of name, 32 for HMAC-SHA256, 32 for AES-256), the first seals; None: BoringSSL's own. Raises ech_workers.arguments.ArgumentError."""

@final
class Server:
    """The other end: TLS with ECH, WebSocket, yamux or simple mode, targets."""

    def __new__(
        cls,
        configuration: ServerConfiguration,
        *,
        host: str,
        port: int,
        workers: int = 0,
        log_level: int = 20,
    ) -> Server:
        """workers: threads that carry traffic, and as many that make handshakes; 0: as many as the process has cores. Raises ech_workers.arguments.ArgumentError
        (of the configuration), or OSError."""
    @property
    def address(self) -> tuple[str, int]: ...
    def apply(self, configuration: ServerConfiguration) -> None:
        """Goes by another configuration, all of it or (ArgumentError, as above) nothing. Connections keep the certificate and the keys that they began with; sessions whose token is
        not there any more end with their last stream; limits are for the sessions and targets that come from now on, but memory_limit counts at once. A server without ech_keys
        may get some, and never lose them; ticket_keys must be as they were in being None or not."""
    def tokens(self) -> list[tuple[str, int, int, int, int]]:
        """Of each token: its label, sessions now and so far, bytes up and down."""
    def sessions(self, most: int = 1000) -> list[ServedSession]:
        """The sessions now, at most so many, those that have carried the most first."""
    def next_event(self, timeout: float | None) -> LogLine | Woken | None: ...
    def wake(self) -> None: ...
    def snapshot(self) -> ServerSnapshot: ...
    def close(self, grace: float = 0.0) -> None:
        """Stops accepting, tells sessions to go away, ends them when idle or after grace seconds."""

# ---------------------------------------------------------------- ECH, certificates

@final
class EchConfig:
    """One entry of an ECHConfigList (RFC 9849 section 4)."""

    @property
    def version(self) -> int: ...
    @property
    def config_id(self) -> int | None:
        """None for a version this client does not know."""
    @property
    def public_name(self) -> str | None: ...
    @property
    def maximum_name_length(self) -> int | None: ...
    @property
    def kem(self) -> int | None: ...

def parse_ech_config_list(data: bytes) -> list[EchConfig]:
    """Raises ValueError: what is wrong, and at which byte."""

def generate_ech_key(config_id: int, public_name: str, maximum_name_length: int = 64) -> tuple[bytes, bytes]:
    """A new X25519 key: the RFC 9934 PEM (private key and ECHConfigList), and the ECHConfigList alone. Raises ValueError for a bad name."""

def read_ech_pem(pem: bytes) -> tuple[bool, bytes]:
    """Whether an RFC 9934 file has a private key, and its ECHConfigList. Raises ValueError."""

def inspect_certificate(chain_pem: bytes, key_pem: bytes) -> tuple[list[str], int, int]:
    """The DNS names of a server's certificate, and from when to when it is valid (seconds since the epoch). Raises ValueError: the pair cannot be read, or does not belong
    together, or the chain does not begin with the server's own certificate."""

@final
class CertificateAuthority:
    """A private authority for demonstrations and tests (P-256)."""

    def __new__(cls) -> CertificateAuthority: ...
    @property
    def pem(self) -> bytes: ...
    def issue(self, names: Sequence[str], *, not_before: int = ..., not_after: int = 604800) -> tuple[bytes, bytes]:
        """PEM chain and PEM key for names (or IP literals); validity in seconds from now, by default from an hour ago (-3600)."""
