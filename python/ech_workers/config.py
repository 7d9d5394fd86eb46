"""Configuration: options in, frozen and validated objects out.

``ClientConfig.build`` and ``ServerConfig.build`` take the options of the command line by their names (as strings or as
the Python values one would expect) and raise ``ConfigError`` that names the option and what would be right. What the
options are is declared in ``ech_workers.options``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, Unpack

import msgspec

from ech_workers import files
from ech_workers.addresses import is_address
from ech_workers.certificates import CertificatePair
from ech_workers.credentials import (
    authorities,
    check_token,
    credential,
    ech_config_list,
    labelled_tokens,
    token_labels,
    token_of,
)
from ech_workers.endpoints import (
    DEFAULT_RESOLVERS,
    ListenAddress,
    Resolver,
    ServerAddress,
    authority,
    host_name,
    public_name,
    resolvers,
    server_addresses,
    url_path,
)
from ech_workers.errors import ConfigError
from ech_workers.options.client import CLIENT, DEFAULT_PROFILE, SERVER_TABLE, Alpn, ClientTuning
from ech_workers.options.schema import options_of
from ech_workers.options.server import SERVER, ServerTuning
from ech_workers.options.typed import ClientOptions, ServerOptions
from ech_workers.options.values import Values
from ech_workers.rules import RuleConfig, read_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "DEFAULT_PROFILE",
    "DEFAULT_RESOLVERS",
    "ClientConfig",
    "ClientOptions",
    "ListenAddress",
    "Resolver",
    "ServerAddress",
    "ServerConfig",
    "ServerOptions",
    "UpstreamConfig",
    "authority",
]

log = logging.getLogger("ech_workers")

Mode = Literal["yamux", "simple"]


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One server, and everything that is said of it alone."""

    name: str
    """For log lines, metrics and rules; the server's authority unless the configuration names it."""
    server: ServerAddress
    token: str | None = None
    ech: bool = True
    mode: Mode = "yamux"
    server_ips: tuple[str, ...] = ()
    ech_domain: str | None = None
    ech_config: bytes | None = None
    ech_bootstrap: str | None = None
    profile: str = DEFAULT_PROFILE
    alpn: Alpn = "auto"
    priority: int = 0
    """The servers with the lowest number carry the traffic; the next ones when none of those can."""
    weight: int = 1
    """The share among servers of the same priority."""

    def __repr__(self) -> str:
        return f"UpstreamConfig({self.name}, {self.server.authority})"  # no secrets in logs


class ClientConfig(ClientTuning, frozen=True, kw_only=True):
    """Everything that ``ech-workers proxy`` and ``Tunnel`` need. Times are seconds, sizes bytes."""

    server: ServerAddress
    token: str | None = None
    ech: bool = True
    mode: Mode = "yamux"
    server_ips: tuple[str, ...] = ()
    """The server's addresses; without them they are looked up over DoH."""
    ech_domain: str | None = None
    """The name whose HTTPS record gives the ECH configuration, when it is not the server's own."""
    ech_config: bytes | None = None
    """An ECHConfigList (RFC 9849 section 4); none is looked up then."""
    ech_bootstrap: str | None = None
    """The public name to ask the server itself for its ECH configurations with, when no resolver has any."""
    profile: str = DEFAULT_PROFILE
    alpn: Alpn = "auto"
    resolvers: tuple[Resolver, ...] = DEFAULT_RESOLVERS
    ca_file: Path | None = None
    ca_pem: bytes | None = None
    """The contents of ca_file: trusted beside the system's roots, for the server and for the resolvers."""
    listen: tuple[ListenAddress, ...] = (ListenAddress("127.0.0.1", 1080),)
    username: str | None = None
    password: str | None = None
    status_listen: tuple[ListenAddress, ...] = ()
    """Where the status page, its feed and the metrics are; nowhere unless it is said."""
    status_hosts: tuple[str, ...] = ()
    """Names that a request to a status port may have, beside addresses and localhost."""
    status_token: str | None = None
    """What a request must have to a status port that is not on loopback."""
    log_file: Path | None = None
    control: str | None = None
    """The control socket of a command; None: in the runtime directory, empty: none. A ``Tunnel`` has none by itself."""
    cache_dir: Path | None = None
    """Where ECH configurations are kept between runs; None keeps them in memory alone."""
    servers: tuple[UpstreamConfig, ...] = ()
    """Several servers; ``server`` and what belongs to it are those of the first then."""
    rules: tuple[RuleConfig, ...] = ()
    """Which way connections go: the first rule that one meets decides, and without one it goes through the tunnel. They
    hold for local ports and for streams of Python programs alike."""

    @property
    def upstreams(self) -> tuple[UpstreamConfig, ...]:
        """Every server, at least one."""
        return self.servers or (
            UpstreamConfig(
                name=self.server.authority,
                server=self.server,
                token=self.token,
                ech=self.ech,
                mode=self.mode,
                server_ips=self.server_ips,
                ech_domain=self.ech_domain,
                ech_config=self.ech_config,
                ech_bootstrap=self.ech_bootstrap,
                profile=self.profile,
                alpn=self.alpn,
            ),
        )

    @property
    def numbers(self) -> dict[str, int]:
        """The servers' numbers by their names."""
        return {upstream.name: number for number, upstream in enumerate(self.upstreams)}

    def __repr__(self) -> str:
        return f"ClientConfig({self.server}, {self.mode}, {'ECH' if self.ech else 'no ECH'})"  # no secrets in logs

    @classmethod
    def build(cls, *, server: str | ServerAddress, **options: Unpack[ClientOptions]) -> ClientConfig:
        """Validates the options of ``ech-workers proxy``, by their names.

        ech_config: base64 or ``@FILE`` as text, an ECHConfigList as bytes. cache_dir: None is the user's cache
        directory, an empty string keeps nothing on disk. listen, status_listen: None or empty opens no port. What may be
        given several times is one value or a sequence. rule: each a mapping with the keys of a ``[[rule]]``. Raises
        ConfigError.
        """
        rules = options.pop("rule", None) or ()
        made = cls.of({"server": server, **options})
        return msgspec.structs.replace(made, rules=read_all(rules, made.numbers)) if rules else made

    @classmethod
    def of(cls, values: Mapping[str, Any], tables: Sequence[Mapping[str, Any]] = ()) -> ClientConfig:
        """Validates options that may come from anywhere. tables: several servers, each with all that is said of it; they
        count instead of the server in ``values``. Raises ConfigError."""
        options = Values(CLIENT, values)
        upstreams = tuple(_upstream(Values(SERVER_TABLE, table)) for table in tables)
        addresses = [(upstream.server.authority, upstream.server.path) for upstream in upstreams]
        for number, upstream in enumerate(upstreams):
            if addresses[number] in addresses[:number]:
                raise ConfigError(f"{upstream.server.authority} is given twice", option="--server")
        first = upstreams[0] if upstreams else _upstream(Values(SERVER_TABLE, _of_server(values)))
        username, password = options.text("username"), options.text("password")
        if (username is None) != (password is None):
            raise ConfigError("--username and --password go together")
        inline = options.given.get("ca_file")
        is_inline = isinstance(inline, str) and "-----BEGIN" in inline
        ca = None if is_inline else options.path("ca_file")
        status_listen, status_token = _status(options)
        return cls(
            **{name: getattr(first, name) for name in SHARED},
            servers=upstreams,
            **options.tuning(ClientTuning),
            resolvers=resolvers(options.several("doh_server"), options.several("doh_ip")),
            ca_file=ca,
            ca_pem=authorities(str(inline).encode(), None) if is_inline else authorities(None, ca) if ca else None,
            listen=tuple(ListenAddress.parse(text) for text in options.several("listen")),
            username=credential(username, "--username"),
            password=credential(password, "--password"),
            status_listen=status_listen,
            status_hosts=tuple(host_name(name, "--status-host") for name in options.several("status_host")),
            status_token=status_token,
            log_file=options.path("log_file"),
            control=_control(options),
            cache_dir=_cache_dir(options.given.get("cache_dir")),
        )


# What a ClientConfig says of its first server.
SHARED = (
    "server",
    "token",
    "ech",
    "mode",
    "server_ips",
    "ech_domain",
    "ech_config",
    "ech_bootstrap",
    "profile",
    "alpn",
)


def _status(options: Values) -> tuple[tuple[ListenAddress, ...], str | None]:
    """Where a status port is, and the token that the network needs there."""
    addresses = tuple(ListenAddress.parse(text, "--status-listen") for text in options.several("status_listen"))
    token = options.text("status_token")
    token = check_token(token, "--status-token") if token else None
    if token is None and not all(address.loopback for address in addresses):
        raise ConfigError(
            "other machines could read the status page",
            option="--status-listen",
            advice="give --status-token, or an address of loopback",
        )
    return addresses, token


def _control(options: Values) -> str | None:
    path = options.path("control")
    return "" if options.given.get("control") == "" else None if path is None else str(path)


def _of_server(values: Mapping[str, Any]) -> dict[str, Any]:
    known = options_of(SERVER_TABLE)
    return {name: value for name, value in values.items() if name in known}


def _upstream(options: Values) -> UpstreamConfig:
    given = options.given.get("server")
    address = given if isinstance(given, ServerAddress) else ServerAddress.parse(_server_text(given), "--server")
    if options.given.get("weight") == 0:
        raise ConfigError(
            "a server of the weight 0 would have no share",
            option="--weight",
            advice="leave the server out, or give it a greater priority number: it is used when the others cannot be",
        )
    ech = options.checked("ech")
    ech_config, ech_domain = options.given.get("ech_config"), options.text("ech_domain")
    ech_bootstrap = options.text("ech_bootstrap")
    if not ech:
        for option, value in (
            ("--ech-config", ech_config),
            ("--ech-domain", ech_domain),
            ("--ech-bootstrap", ech_bootstrap),
        ):
            if value:
                raise ConfigError("has no meaning with --no-ech", option=option, advice="leave one of them out")
    elif is_address(address.host):
        raise ConfigError(
            f"ECH hides a name, and {address.host} is an address",
            option="--server",
            advice=f"give the server's name, and --server-ip {address.host}",
        )
    if ech_config and ech_domain:
        raise ConfigError("--ech-config already says it", option="--ech-domain", advice="leave one of them out")
    if ech_config and not isinstance(ech_config, str | bytes):
        raise ConfigError(f"expected base64 or bytes, not {type(ech_config).__name__}", option="--ech-config")
    return UpstreamConfig(
        name=options.text("name") or address.authority,
        server=address,
        token=token_of(options.text("token"), options.path("token_file")),
        ech=ech,
        mode="yamux" if options.checked("yamux") else "simple",
        server_ips=server_addresses(options.several("server_ip")),
        ech_domain=host_name(ech_domain, "--ech-domain", address=False) if ech_domain else None,
        ech_config=ech_config_list(ech_config) if ech_config else None,
        ech_bootstrap=public_name(ech_bootstrap) if ech_bootstrap else None,
        profile=_profile(options.text("profile") or DEFAULT_PROFILE),
        alpn=options.checked("alpn"),
        priority=options.checked("priority"),
        weight=options.checked("weight"),
    )


def _server_text(value: object) -> str:
    if value is None or value == "":
        raise ConfigError(
            "is missing", option="--server", code="server-missing", advice="say which server: HOST[:PORT]/PATH"
        )
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"cannot read {value!r}", option="--server", advice="write HOST[:PORT]/PATH")
    return value


class ServerConfig(ServerTuning, frozen=True, kw_only=True):
    """Everything that ``ech-workers server`` needs. Times are seconds."""

    listen: ListenAddress
    certificates: tuple[CertificatePair, ...]
    """The first pair is the default, the others are chosen by server name."""
    tokens: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """What the status calls each token, in the same order: what the token file says, else ``token 1`` and so on."""
    ech_keys: Path | None = None
    """The directory of RFC 9934 files; None serves without ECH."""
    ticket_keys: Path | None = None
    """The directory of session ticket keys that servers share; None: keys of this process alone."""
    path: str = "/"
    decoy: bytes | None = None
    public_healthz: bool = False
    status_listen: tuple[ListenAddress, ...] = ()
    status_hosts: tuple[str, ...] = ()
    status_token: str | None = None
    log_file: Path | None = None
    control: str | None = None
    """The control socket of the command; None: in the runtime directory, empty: none."""

    def __repr__(self) -> str:
        return f"ServerConfig({self.listen}, {self.path})"  # no secrets in logs

    @classmethod
    def build(cls, **options: Unpack[ServerOptions]) -> ServerConfig:
        """Validates the options of ``ech-workers server``, by their names. Raises ConfigError."""
        return cls.of({**options})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ServerConfig:
        """Validates options that may come from anywhere. Raises ConfigError."""
        options = Values(SERVER, values)
        chains, keys = _paths(options.several("cert"), "--cert"), _paths(options.several("key"), "--key")
        if not chains:
            raise ConfigError("a server needs a certificate", option="--cert", advice="give --cert and --key")
        if len(chains) != len(keys):
            raise ConfigError(
                f"{len(chains)} certificates and {len(keys)} keys",
                option="--key",
                advice="give one --key for each --cert",
            )
        listen = options.text("listen")
        if not listen:
            raise ConfigError("is missing", option="--listen", advice="write ADDR:PORT, for example [::]:443")
        given = [(check_token(text, "--token"), "") for text in options.several("token")]
        token_file = options.path("token_file")
        if token_file:
            given += labelled_tokens(token_file)
        tokens = tuple(dict.fromkeys(token for token, _ in given))
        if not tokens:
            raise ConfigError(
                "a server without a token would be open to everyone",
                option="--token",
                advice="give --token or --token-file",
            )
        directory = options.path("ech_keys")
        if directory is not None and not directory.is_dir():
            if directory.exists():
                raise ConfigError(
                    f"{directory} is no directory", option="--ech-keys", advice="name the one with the keys"
                )
            raise ConfigError(
                f"there is no directory {directory}",
                option="--ech-keys",
                advice=f"make a key with `ech-workers keygen --public-name NAME --out {directory}`",
            )
        decoy = options.path("decoy")
        status_listen, status_token = _status(options)
        return cls(
            status_listen=status_listen,
            status_hosts=tuple(host_name(name, "--status-host") for name in options.several("status_host")),
            status_token=status_token,
            **options.tuning(ServerTuning),
            # The native server knows the word.
            listen=ListenAddress(listen, 0) if listen == "systemd" else ListenAddress.parse(listen),
            certificates=tuple(
                CertificatePair.read(chain, private) for chain, private in zip(chains, keys, strict=True)
            ),
            tokens=tokens,
            labels=token_labels(tokens, dict(reversed(given))),
            public_healthz=options.checked("public_healthz"),
            ech_keys=directory,
            ticket_keys=options.path("ticket_keys"),
            path=url_path(options.text("path") or "/", "--path"),
            decoy=files.read(decoy, "--decoy") if decoy else None,
            log_file=options.path("log_file"),
            control=_control(options),
        )


def _profile(name: str) -> str:
    if name == DEFAULT_PROFILE:
        return name
    from ech_workers._native import PROFILES

    if name not in PROFILES:
        raise ConfigError(
            f"{name!r} is not known", option="--profile", advice=f"choose from {DEFAULT_PROFILE}, {', '.join(PROFILES)}"
        )
    return name


def _cache_dir(value: str | Path | None) -> Path | None:
    if value is not None:
        return files.expand(value, "--cache-dir") if str(value) else None
    import platformdirs

    try:
        return platformdirs.user_cache_path("ech-workers", appauthor=False)
    except RuntimeError:
        # A user without HOME and without an entry in the system's list of users.
        global _told_of_no_home
        if not _told_of_no_home:
            _told_of_no_home = True
            log.warning("there is no home directory: ECH configurations are kept in memory alone (--cache-dir DIR)")
        return None


_told_of_no_home = False


def _paths(values: Sequence[str], option: str) -> tuple[Path, ...]:
    return tuple(files.expand(path, option) for path in values)
