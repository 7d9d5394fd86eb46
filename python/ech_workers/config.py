"""Configuration: options in, frozen and validated objects out.

``ClientConfig.build`` and ``ServerConfig.build`` take the options of the command line by their names (as strings or as
the Python values one would expect) and raise ``ConfigError`` that names the option and what would be right. What the
options are is declared in ``ech_workers.options``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack
from urllib.parse import quote, urlsplit

import msgspec

from ech_workers import files
from ech_workers.addresses import is_address
from ech_workers.certificates import CertificatePair
from ech_workers.errors import ConfigError
from ech_workers.names import ascii_name
from ech_workers.options.client import CLIENT, DEFAULT_PROFILE, SERVER_TABLE, Alpn, ClientTuning
from ech_workers.options.schema import Schema, check, options_of
from ech_workers.options.server import SERVER, ServerTuning
from ech_workers.options.sources import nearest
from ech_workers.options.typed import ClientOptions, ServerOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


class ServerAddress(msgspec.Struct, frozen=True):
    """The tunnel's server: the name that ECH hides, not an address."""

    host: str
    port: int = 443
    path: str = "/"

    @classmethod
    def parse(cls, text: str, option: str = "--server") -> ServerAddress:
        """Reads ``HOST[:PORT]/PATH``, with or without ``wss://`` or ``https://`` in front."""
        rest = text.strip()
        scheme, separator, tail = rest.partition("://")
        if separator:
            if scheme.lower() not in ("wss", "https"):
                raise ConfigError(
                    f"{scheme}:// is not encrypted or not known", option=option, advice="write HOST[:PORT]/PATH"
                )
            rest = tail
        authority, slash, path = rest.partition("/")
        if "@" in authority or "?" in authority or "#" in rest:
            raise ConfigError(f"cannot read {text!r}", option=option, advice="write HOST[:PORT]/PATH")
        host, port = _host_and_port(authority, option, default_port=443)
        return cls(host, port, _path(slash + path, option))

    @property
    def authority(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return authority(self.host, self.port)

    def __str__(self) -> str:
        return self.authority + self.path


class ListenAddress(msgspec.Struct, frozen=True):
    """A local port; port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str = "--listen") -> ListenAddress:
        """Reads ``ADDRESS:PORT`` or ``PORT`` (on 127.0.0.1 then)."""
        text = text.strip()
        if text.startswith(":"):
            raise ConfigError(
                f"{text!r} does not say on which address",
                option=option,
                advice=f"write 127.0.0.1{text} for this machine alone, or 0.0.0.0{text} for everyone",
            )
        if text.isdecimal():
            text = f"127.0.0.1:{text}"
        host, port = _host_and_port(text, option, default_port=None, zero=True)
        if host != "localhost" and not is_address(host):
            raise ConfigError(f"{host!r} is not an IP address", option=option, advice="write ADDRESS:PORT")
        return cls(host, port)

    @property
    def loopback(self) -> bool:
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return authority(self.host, self.port)


class Resolver(msgspec.Struct, frozen=True):
    """A DoH resolver (RFC 8484) and the addresses to reach it by, so that no plain DNS is ever asked."""

    url: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @classmethod
    def parse(cls, url: str, addresses: Sequence[str] = ()) -> Resolver:
        """Reads an https URL. The addresses come from the caller, from the URL, or from the built-in list."""
        option = "--doh-server"
        # The template form of RFC 8484 section 4.1; the variable is added by the look-up itself.
        text = url.strip().removesuffix("{?dns}")
        if "://" not in text:
            text = "https://" + text
        try:
            parts = urlsplit(text)
            name, port = parts.hostname or "", parts.port if parts.port is not None else 443
        except ValueError as error:
            raise ConfigError(f"cannot read {url!r}: {error}", option=option, advice=_RESOLVER_FORM) from None
        if parts.scheme.lower() != "https" or not name or parts.username is not None or parts.fragment:
            raise ConfigError(f"cannot read {url!r}", option=option, advice=_RESOLVER_FORM)
        if not 1 <= port <= 65535:
            raise ConfigError(f"{port} is no port", option=option, advice=_RESOLVER_FORM)
        path = _path((parts.path or "/dns-query") + (f"?{parts.query}" if parts.query else ""), option)
        host = _host(name, option)
        known = tuple(_address(address, "--doh-ip") for address in addresses)
        if not known and is_address(host):
            known = (host,)
        if not known:
            known = next((resolver.addresses for resolver in DEFAULT_RESOLVERS if resolver.host == host), ())
        if not known:
            raise ConfigError(
                f"the address of {host} is not known, and plain DNS is never asked",
                option=option,
                advice="give its address with --doh-ip",
            )
        return cls(f"https://{authority(host, port, 443)}{path}", host, port, path, known)

    def __str__(self) -> str:
        return self.url


_RESOLVER_FORM = "write https://HOST[:PORT]/PATH, like https://dns.quad9.net/dns-query"


def _known(host: str, *addresses: str) -> Resolver:
    return Resolver(f"https://{host}/dns-query", host, 443, "/dns-query", addresses)


# Four operators in three countries, none of which filters by default except Quad9 (malware). The addresses are those
# that the operators publish for their DoH service.
DEFAULT_RESOLVERS: tuple[Resolver, ...] = (
    _known("cloudflare-dns.com", "1.1.1.1", "1.0.0.1", "2606:4700:4700::1111"),
    _known("dns.quad9.net", "9.9.9.9", "149.112.112.112", "2620:fe::fe"),
    _known("dns.google", "8.8.8.8", "8.8.4.4", "2001:4860:4860::8888"),
    _known("unfiltered.adguard-dns.com", "94.140.14.140", "94.140.14.141", "2a10:50c0::1:ff"),
)


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

    def __repr__(self) -> str:
        return f"ClientConfig({self.server}, {self.mode}, {'ECH' if self.ech else 'no ECH'})"  # no secrets in logs

    @classmethod
    def build(cls, *, server: str | ServerAddress, **options: Unpack[ClientOptions]) -> ClientConfig:
        """Validates the options of ``ech-workers proxy``, by their names.

        ech_config: base64 or ``@FILE`` as text, an ECHConfigList as bytes. cache_dir: None is the user's cache
        directory, an empty string keeps nothing on disk. listen, status_listen: None or empty opens no port. What may be
        given several times is one value or a sequence. Raises ConfigError.
        """
        return cls.of({"server": server, **options})

    @classmethod
    def of(cls, values: Mapping[str, Any], tables: Sequence[Mapping[str, Any]] = ()) -> ClientConfig:
        """Validates options that may come from anywhere. tables: several servers, each with all that is said of it; they
        count instead of the server in ``values``. Raises ConfigError."""
        options = _Values(CLIENT, values)
        upstreams = tuple(_upstream(_Values(SERVER_TABLE, table)) for table in tables)
        addresses = [(upstream.server.authority, upstream.server.path) for upstream in upstreams]
        for number, upstream in enumerate(upstreams):
            if addresses[number] in addresses[:number]:
                raise ConfigError(f"{upstream.server.authority} is given twice", option="--server")
        first = upstreams[0] if upstreams else _upstream(_Values(SERVER_TABLE, _of_server(values)))
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
            resolvers=_resolvers(options.several("doh_server"), options.several("doh_ip")),
            ca_file=ca,
            ca_pem=_authorities(str(inline).encode(), None) if is_inline else _authorities(None, ca) if ca else None,
            listen=tuple(ListenAddress.parse(text) for text in options.several("listen")),
            username=_credential(username, "--username"),
            password=_credential(password, "--password"),
            status_listen=status_listen,
            status_hosts=tuple(_host(name, "--status-host") for name in options.several("status_host")),
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


class _Values:
    """What was given for the options of a schema; what was not has its default."""

    def __init__(self, schema: Schema, given: Mapping[str, Any]) -> None:
        self.declared = options_of(schema)
        for name in given:
            if name not in self.declared:
                near = nearest(name, self.declared)
                raise TypeError(f"there is no option {name!r}{f'; did you mean {near!r}?' if near else ''}")
        self.given = given

    def checked(self, name: str) -> Any:
        declared = self.declared[name]
        return check(declared, self.given.get(name, declared.default))

    def tuning(self, schema: type[msgspec.Struct]) -> dict[str, Any]:
        """The options that need no more than a look at their range."""
        return {name: self.checked(name) for name in schema.__struct_fields__}

    def text(self, name: str) -> str | None:
        value = self.given.get(name, self.declared[name].default)
        if value is None or isinstance(value, str):
            return value
        raise ConfigError(f"expected a text, not {type(value).__name__}", option=self.declared[name].flag)

    def path(self, name: str) -> Path | None:
        value = self.given.get(name, self.declared[name].default)
        if value is not None and not isinstance(value, str | Path):
            raise ConfigError(f"expected a path, not {type(value).__name__}", option=self.declared[name].flag)
        return files.expand(value, self.declared[name].flag) if value else None

    def several(self, name: str) -> tuple[str, ...]:
        value = self.given.get(name, self.declared[name].default)
        if value is None or value == "":
            return ()
        values = (value,) if isinstance(value, _ONE) else value
        if not isinstance(values, Iterable) or not all(isinstance(one, _ONE) for one in values):
            raise ConfigError(f"expected a text or several, not {value!r}", option=self.declared[name].flag)
        return tuple(str(one) for one in values)


# What Python programs give for an address, a port or a path.
_ONE = (str, int, Path, ipaddress.IPv4Address, ipaddress.IPv6Address)


def _status(options: _Values) -> tuple[tuple[ListenAddress, ...], str | None]:
    """Where a status port is, and the token that the network needs there."""
    addresses = tuple(ListenAddress.parse(text, "--status-listen") for text in options.several("status_listen"))
    token = options.text("status_token")
    token = _check_token(token, "--status-token") if token else None
    if token is None and not all(address.loopback for address in addresses):
        raise ConfigError(
            "other machines could read the status page",
            option="--status-listen",
            advice="give --status-token, or an address of loopback",
        )
    return addresses, token


def _control(options: _Values) -> str | None:
    path = options.path("control")
    return "" if options.given.get("control") == "" else None if path is None else str(path)


def _of_server(values: Mapping[str, Any]) -> dict[str, Any]:
    known = options_of(SERVER_TABLE)
    return {name: value for name, value in values.items() if name in known}


def _upstream(options: _Values) -> UpstreamConfig:
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
        token=_token(options.text("token"), options.path("token_file")),
        ech=ech,
        mode="yamux" if options.checked("yamux") else "simple",
        server_ips=_server_ips(options.several("server_ip")),
        ech_domain=_host(ech_domain, "--ech-domain", address=False) if ech_domain else None,
        ech_config=_ech_config(ech_config) if ech_config else None,
        ech_bootstrap=_public_name(ech_bootstrap) if ech_bootstrap else None,
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
    ech_keys: Path | None = None
    """The directory of RFC 9934 files; None serves without ECH."""
    ticket_keys: Path | None = None
    """The directory of session ticket keys that servers share; None: keys of this process alone."""
    path: str = "/"
    decoy: bytes | None = None
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
        options = _Values(SERVER, values)
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
        tokens = tuple(_check_token(text, "--token") for text in options.several("token"))
        token_file = options.path("token_file")
        if token_file:
            tokens += _tokens_of(token_file)
        if not tokens:
            raise ConfigError(
                "a server without a token would be open to everyone",
                option="--token",
                advice="give --token or --token-file",
            )
        directory = options.path("ech_keys")
        if directory is not None and not directory.is_dir():
            raise ConfigError(
                f"there is no directory {directory}",
                option="--ech-keys",
                advice=f"make a key with `ech-workers keygen --public-name NAME --out {directory}`",
            )
        decoy = options.path("decoy")
        status_listen, status_token = _status(options)
        return cls(
            status_listen=status_listen,
            status_hosts=tuple(_host(name, "--status-host") for name in options.several("status_host")),
            status_token=status_token,
            **options.tuning(ServerTuning),
            # The native server knows the word.
            listen=ListenAddress(listen, 0) if listen == "systemd" else ListenAddress.parse(listen),
            certificates=tuple(
                CertificatePair.read(chain, private) for chain, private in zip(chains, keys, strict=True)
            ),
            tokens=tuple(dict.fromkeys(tokens)),
            ech_keys=directory,
            ticket_keys=options.path("ticket_keys"),
            path=_path(options.text("path") or "/", "--path"),
            decoy=files.read(decoy, "--decoy") if decoy else None,
            log_file=options.path("log_file"),
            control=_control(options),
        )


# RFC 1035 section 2.3.1 and RFC 2181 section 11: what host names in the field look like.
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def _host(text: str, option: str, *, address: bool = True) -> str:
    """A DNS name in its ASCII form, lower case and without the final dot, or an IP literal without brackets."""
    host = text.strip()
    if address and is_address(host):
        return str(ipaddress.ip_address(host))
    try:
        host = ascii_name(host)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no host name: {error}", option=option) from None
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    # A name that ends in a number is an address that went wrong (RFC 3986 section 7.4), never a name.
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdecimal():
        raise ConfigError(f"{text!r} is no host name", option=option)
    return host


def _public_name(text: str) -> str:
    """A name that may stand in an ECH configuration: letters, digits and hyphens (RFC 9849 section 4)."""
    name = _host(text, "--ech-bootstrap", address=False)
    if "_" in name:
        raise ConfigError(f"{text!r} is no public name", option="--ech-bootstrap")
    return name


def _host_and_port(text: str, option: str, *, default_port: int | None, zero: bool = False) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not is_address(host) or (rest and not rest.startswith(":")):
            raise ConfigError(f"cannot read {text!r}", option=option, advice="write [IPV6]:PORT")
        digits = rest[1:] if rest else None
    elif text.count(":") > 1:
        raise ConfigError(f"cannot read {text!r}", option=option, advice="write IPv6 addresses in brackets: [::1]:443")
    else:
        host, colon, after = text.partition(":")
        digits = after if colon else None
    if not host:
        raise ConfigError("the host is missing", option=option)
    if digits is None:
        if default_port is None:
            raise ConfigError(f"{text!r} has no port", option=option, advice=f"write {text}:PORT")
        port = default_port
    elif digits.isascii() and digits.isdecimal() and (0 if zero else 1) <= int(digits[:6]) <= 65535:
        port = int(digits[:6])
    else:
        raise ConfigError(f"{digits!r} is no port", option=option, advice="ports go from 1 to 65535")
    return _host(host, option), port


def authority(host: str, port: int, default_port: int | None = None) -> str:
    """``host:port`` with IPv6 in brackets; the default port is left out."""
    name = f"[{host}]" if ":" in host else host
    return name if port == default_port else f"{name}:{port}"


def _server_ips(given: Sequence[str]) -> tuple[str, ...]:
    """Addresses and networks, also from files (``@FILE``, one a line)."""
    option = "--server-ip"
    found: dict[str, None] = {}
    for text in given:
        if text.startswith("@"):
            file = files.expand(text[1:], option)
            lines = [(f"{file}, line {number}: ", line) for number, line in files.lines(file, option)]
            if not lines:
                raise ConfigError(f"{file} has no address in it", option=option)
        else:
            lines = [("", text)]
        for where, line in lines:
            try:
                found[
                    str(ipaddress.ip_network(line.strip(), strict=False)) if "/" in line else _address(line, option)
                ] = None
            except ValueError as error:
                raise ConfigError(f"{where}{error}", option=option) from None
            except ConfigError:
                if not where:
                    raise
                raise ConfigError(f"{where}{line!r} is no IP address", option=option) from None
    return tuple(found)


def _address(text: str, option: str) -> str:
    bare = text.strip().removeprefix("[").removesuffix("]")
    if not is_address(bare):
        raise ConfigError(f"{text!r} is no IP address", option=option)
    if "%" in bare:
        raise ConfigError(
            f"{text!r} has a zone, by which no server can be reached here",
            option=option,
            advice="give an address that is valid beyond one link",
        )
    return str(ipaddress.ip_address(bare))


def _path(text: str, option: str) -> str:
    path = text or "/"
    if not path.startswith("/"):
        path = "/" + path
    if "#" in path or any(ord(character) < 0x21 or ord(character) == 0x7F for character in path):
        raise ConfigError(f"{text!r} is no path", option=option, advice="write it as it stands in a URL")
    return quote(path, safe="/?%:@!$&'()*+,;=-._~[]")


def _check_token(text: str, option: str, where: str = "") -> str:
    token = text.strip()
    if len(token) > 2 and token[0] == token[-1] and token[0] in "\"'":
        raise ConfigError(
            f"{where}the token is in quotes", option=option, code="token-invalid", advice="write it without them"
        )
    if not token or len(token) > 512 or any(not 0x21 <= ord(character) <= 0x7E for character in token) or "," in token:
        # The token travels as the one value of Sec-WebSocket-Protocol: a comma or a space would make it a list.
        raise ConfigError(
            f"{where}a token is 1 to 512 visible ASCII characters without space and comma",
            option=option,
            code="token-invalid",
        )
    return token


def _tokens_of(file: Path) -> tuple[str, ...]:
    option = "--token-file"
    return tuple(_check_token(line, option, f"{file}, line {number}: ") for number, line in files.lines(file, option))


def _token(token: str | None, file: Path | None) -> str | None:
    if token and file:
        raise ConfigError("--token is given too", option="--token-file", advice="leave one of them out")
    if file:
        tokens = _tokens_of(file)
        if len(tokens) != 1:
            raise ConfigError(f"{file} has {len(tokens)} tokens", option="--token-file", advice="put one token in it")
        return tokens[0]
    return _check_token(token, "--token") if token else None


def _ech_config(value: str | bytes) -> bytes:
    option = "--ech-config"
    if isinstance(value, bytes):
        data, source = value, "the given bytes"
    elif value.startswith("@"):
        file = files.expand(value[1:], option)
        data, source = files.read(file, option), str(file)
        if not _looks_like_list(data):
            data = files.text_of(data, file, option).encode()
            if b"-----BEGIN" in data:
                files.check_pem(data, file, option)
    else:
        data, source = value.encode("ascii", errors="replace"), "the given text"
        if b"-----BEGIN" not in data:
            data = _base64(data, option, source)
    from ech_workers._native import parse_ech_config_list, read_ech_pem

    try:
        if b"-----BEGIN" in data:
            if b"PRIVATE KEY-----" in data:
                raise ConfigError(
                    f"{source} has the server's private key in it, which no client may have",
                    option=option,
                    code="ech-private-key",
                    advice="take the ID.ech file that `ech-workers keygen` writes beside it, and make a new key",
                )
            _, data = read_ech_pem(data)
        elif not _looks_like_list(data):
            data = _base64(data, option, source)
        parse_ech_config_list(data)
    except ValueError as error:
        raise ConfigError(
            f"{source} is no ECHConfigList: {error}",
            option=option,
            advice="give base64, or @FILE with the raw list, its base64 or an RFC 9934 PEM file",
        ) from None
    return data


def _looks_like_list(data: bytes) -> bool:
    # ECHConfigList is a vector with a 16-bit length in front (RFC 9849 section 4).
    return len(data) >= 2 and int.from_bytes(data[:2], "big") == len(data) - 2


def _base64(data: bytes, option: str, source: str) -> bytes:
    try:
        return base64.b64decode(b"".join(data.strip().strip(b"\"'").split()), validate=True)
    except binascii.Error:
        raise ConfigError(
            f"{source} is neither base64 nor an ECHConfigList",
            option=option,
            advice="give base64, or @FILE with the raw list, its base64 or an RFC 9934 PEM file",
        ) from None


def _resolvers(servers: Sequence[str], addresses: Sequence[str]) -> tuple[Resolver, ...]:
    if not servers:
        if addresses:
            raise ConfigError("has no meaning without --doh-server", option="--doh-ip")
        return DEFAULT_RESOLVERS
    if len(servers) == 1:
        return (Resolver.parse(servers[0], addresses),)
    if not addresses:
        return tuple(Resolver.parse(url) for url in servers)
    if len(addresses) != len(servers):
        raise ConfigError(
            f"{len(addresses)} addresses for {len(servers)} resolvers",
            option="--doh-ip",
            advice="with several --doh-server give one --doh-ip for each, in the same order",
        )
    return tuple(Resolver.parse(url, (ip,)) for url, ip in zip(servers, addresses, strict=True))


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


def _credential(value: str | None, option: str) -> str | None:
    # RFC 1929 section 2: one byte of length.
    if value is not None and not 1 <= len(value.encode()) <= 255:
        raise ConfigError("must be 1 to 255 bytes long", option=option)
    return value


def _authorities(text: bytes | None, file: Path | None) -> bytes:
    """The PEM of private authorities: given as it is, or in a file."""
    option = "--ca-file"
    named = file or Path("the given text")
    pem = files.read(named, option) if text is None else text
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ConfigError(f"{named} has no certificate in it", option=option, advice="give a PEM file")
    files.check_pem(pem, named, option)
    return pem
