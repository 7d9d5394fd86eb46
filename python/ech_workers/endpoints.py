"""Where things are: the server, local ports, resolvers, and the names, addresses and paths that they are written with.

Each is read from the text of an option; ConfigError names the option and what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import msgspec

from ech_workers import files
from ech_workers.addresses import is_address
from ech_workers.errors import ConfigError
from ech_workers.names import ascii_name

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEFAULT_RESOLVERS",
    "ListenAddress",
    "Resolver",
    "ServerAddress",
    "authority",
    "host_name",
    "public_name",
    "resolvers",
    "server_addresses",
    "url_path",
]


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
        host, port = host_and_port(authority, option, default_port=443)
        return cls(host, port, url_path(slash + path, option))

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
        host, port = host_and_port(text, option, default_port=None, zero=True)
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
        path = url_path((parts.path or "/dns-query") + (f"?{parts.query}" if parts.query else ""), option)
        host = host_name(name, option)
        known = tuple(ip_address(address, "--doh-ip") for address in addresses)
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


# RFC 1035 section 2.3.1 and RFC 2181 section 11: what host names in the field look like.
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def host_name(text: str, option: str, *, address: bool = True) -> str:
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


def public_name(text: str) -> str:
    """A name that may stand in an ECH configuration: letters, digits and hyphens (RFC 9849 section 4)."""
    name = host_name(text, "--ech-bootstrap", address=False)
    if "_" in name:
        raise ConfigError(f"{text!r} is no public name", option="--ech-bootstrap")
    return name


def host_and_port(text: str, option: str, *, default_port: int | None, zero: bool = False) -> tuple[str, int]:
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
    return host_name(host, option), port


def authority(host: str, port: int, default_port: int | None = None) -> str:
    """``host:port`` with IPv6 in brackets; the default port is left out."""
    name = f"[{host}]" if ":" in host else host
    return name if port == default_port else f"{name}:{port}"


def server_addresses(given: Sequence[str]) -> tuple[str, ...]:
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
            found[_network(line, where, option) if "/" in line else ip_address(line, option, where, _FORMS)] = None
    return tuple(found)


_FORMS = "write an address, a network as 192.0.2.0/24, or a file of them as @FILE"


def _network(text: str, where: str, option: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise ConfigError(
            f"{where}{text.strip()!r} is no network",
            option=option,
            advice=_FORMS,
        ) from None


def ip_address(text: str, option: str, where: str = "", advice: str | None = None) -> str:
    bare = text.strip().removeprefix("[").removesuffix("]")
    if not is_address(bare):
        raise ConfigError(f"{where}{text!r} is no IP address", option=option, advice=advice)
    if "%" in bare:
        raise ConfigError(
            f"{where}{text!r} has a zone, by which no server can be reached here",
            option=option,
            advice="give an address that is valid beyond one link",
        )
    return str(ipaddress.ip_address(bare))


def url_path(text: str, option: str) -> str:
    path = text or "/"
    if not path.startswith("/"):
        path = "/" + path
    if "#" in path or any(ord(character) < 0x21 or ord(character) == 0x7F for character in path):
        raise ConfigError(f"{text!r} is no path", option=option, advice="write it as it stands in a URL")
    return quote(path, safe="/?%:@!$&'()*+,;=-._~[]")


def resolvers(servers: Sequence[str], addresses: Sequence[str]) -> tuple[Resolver, ...]:
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
