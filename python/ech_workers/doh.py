"""DNS messages for the look-up over HTTPS (RFC 8484): questions out, checked answers in; no input or output here.

An answer is taken only if it is one to the question that was asked, whole, and well formed. What a resolver says about
a name that has no usable record is an answer too: ``why`` says it, and the lists are empty. What makes the exchange
itself worthless raises ``AnswerError``, and another resolver should be asked.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import TYPE_CHECKING, Literal

import msgspec

from ech_workers import dns_message
from ech_workers.dns_message import Malformed, Message, Name, Record, Service, name_to_text

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ALIAS_LIMIT",
    "AddressAnswer",
    "AnswerError",
    "Endpoint",
    "HttpsAnswer",
    "Question",
    "https_name",
    "query",
    "read_address_answer",
    "read_https_answer",
    "read_response",
    "request",
]

Type = Literal["HTTPS", "A", "AAAA"]
Method = Literal["GET", "POST"]

ALIAS_LIMIT = 8
"""CNAME and AliasMode steps in one look-up, all messages together (RFC 9460 section 2.4.2 asks for a limit)."""

MESSAGE_LIMIT = 65535
"""RFC 8484 section 6."""

TTL_LIMIT = 7 * 86400
"""RFC 8767 section 4: a cap of some days, whatever the record says."""

ADDRESS_LIMIT = 16
"""More addresses than a dial tries in its time are of no use."""

# What a negative answer without an SOA is good for (RFC 2308 section 5 forbids caching it for long).
_NEGATIVE_TTL = 30

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


class AnswerError(Exception):
    """The exchange gave nothing that could be believed; ``code`` is one of the resolver's codes in docs/reference."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Question(msgspec.Struct, frozen=True):
    """One name and type; class IN."""

    name: str
    type: Type

    def __str__(self) -> str:
        return f"{self.name} {self.type}"


class Endpoint(msgspec.Struct, frozen=True):
    """A ServiceMode record that this client can use (RFC 9460 section 2.4.3)."""

    priority: int
    target: str
    """The name whose addresses to use: TargetName, or the record's owner."""
    port: int
    alpn: tuple[str, ...] = ()
    """With the default protocol of the scheme, http/1.1, unless the record excludes it."""
    ech: bytes | None = None
    """The ECHConfigList as it stands in the record (RFC 9848 section 3)."""
    hints: tuple[str, ...] = ()
    """ipv4hint and ipv6hint, to be used until the addresses of ``target`` are known."""


class HttpsAnswer(msgspec.Struct, frozen=True):
    """What one message says about a name's HTTPS records."""

    name: str
    """The name that the chain led to, so far."""
    ttl: int
    """Seconds; the least of all records that were used, or how long the absence holds."""
    endpoints: tuple[Endpoint, ...] = ()
    """In the order of their priority."""
    alias: str | None = None
    """An AliasMode target that the message does not answer for: ask for its HTTPS records next."""
    steps: int = 0
    """CNAME and AliasMode steps so far; hand it to the reading of the next message."""
    why: str | None = None
    """Why there is no endpoint."""
    doubtful: bool = False
    """An absence that a resolver which filters might have made up."""

    def with_ech(self) -> Endpoint | None:
        """The endpoint to use when ECH is a must: the first that has a configuration."""
        return next((endpoint for endpoint in self.endpoints if endpoint.ech), None)


class AddressAnswer(msgspec.Struct, frozen=True):
    """The addresses of a name, of one family."""

    name: str
    ttl: int
    addresses: tuple[str, ...] = ()
    why: str | None = None
    doubtful: bool = False
    """As in HttpsAnswer. That a name has no address of one family is common, and not doubted."""


def https_name(host: str, port: int = 443) -> str:
    """The owner of the HTTPS records of https://host:port (RFC 9460 section 9.1)."""
    return host if port == 443 else f"_{port}._https.{host}"


def query(question: Question) -> bytes:
    """The query in wire form: id 0 (RFC 8484 section 4.1), recursion desired, padded (RFC 8467)."""
    return dns_message.query(question.name, question.type)


def request(path: str, message: bytes, method: Method) -> tuple[str, list[tuple[str, str]], bytes]:
    """Path, headers and body of the HTTP request that carries a query (RFC 8484 section 4.1).

    The headers are those of Firefox's own resolver, in its order: no user agent, no language, an empty Accept-Encoding.
    """
    headers = [("accept", _MEDIA_TYPE), ("accept-encoding", "")]
    if method == "POST":
        return path, [*headers, ("content-type", _MEDIA_TYPE)], message
    text = base64.urlsafe_b64encode(message).rstrip(b"=").decode("ascii")
    return f"{path}{'&' if '?' in path else '?'}dns={text}", headers, b""


def read_response(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> int:
    """Checks what HTTP says about the body, and returns the seconds that the answer has spent in caches.

    Raises AnswerError.
    """
    values = {name.lower(): value.strip() for name, value in headers}
    if status != 200:
        raise AnswerError("http-status", f"the resolver answered with HTTP status {status}")
    media_type = values.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _MEDIA_TYPE:
        raise AnswerError(
            "resolver-not-dns", f"the resolver answered with {_printable(media_type) or 'no content type'}, not DNS"
        )
    if len(body) > MESSAGE_LIMIT:
        raise AnswerError("resolver-malformed", f"the answer has {len(body)} bytes, more than a DNS message may")
    age = values.get("age", "")
    # RFC 8484 section 5.1: the TTLs count from when the answer was made.
    return min(int(age), TTL_LIMIT) if age.isascii() and age.isdecimal() and len(age) < 10 else 0


def read_https_answer(wire: bytes, question: Question, port: int, *, steps: int = 0) -> HttpsAnswer:
    """Reads the answer to a question for HTTPS records.

    port: the origin's, which a record without the parameter stands for. steps: those taken before this message.
    Raises AnswerError.
    """
    try:
        return _read_https(_message(wire, question), question, port, steps)
    except Malformed as error:
        raise _malformed(error) from None


def read_address_answer(wire: bytes, question: Question) -> AddressAnswer:
    """Reads the answer to a question for A or AAAA records. Raises AnswerError."""
    try:
        return _read_addresses(_message(wire, question), question)
    except Malformed as error:
        raise _malformed(error) from None


_MEDIA_TYPE = "application/dns-message"


def _malformed(error: Malformed) -> AnswerError:
    return AnswerError("resolver-malformed", f"the answer is malformed: {error}")


def _message(wire: bytes, question: Question) -> Message:
    if len(wire) >= 2 and wire[:2] != b"\0\0":
        raise AnswerError("resolver-mismatch", "the answer has another id than the question")
    if len(wire) >= 4 and wire[2] & 0x02:
        # RFC 8484 section 4.2.1: there is no larger transport to ask again over.
        raise AnswerError("resolver-truncated", "the answer is marked as truncated")
    message = Message(wire)
    if not message.is_answer:
        raise AnswerError("resolver-mismatch", "the message is no answer to a query")
    rcode = message.rcode
    asked = (dns_message.name_from_text(question.name), dns_message.TYPES[question.type], dns_message.IN)
    # A server that could not read the query may leave the question out when it says so.
    unread = (dns_message.FORMERR, dns_message.SERVFAIL, dns_message.NOTIMP)
    if message.questions != [asked] and not (not message.questions and rcode in unread):
        raise AnswerError("resolver-mismatch", "the answer is to another question")
    if rcode not in (dns_message.NOERROR, dns_message.NXDOMAIN):
        word = dns_message.RCODES.get(rcode, f"rcode {rcode}")
        code = _CODES.get(rcode, "resolver-rcode")
        raise AnswerError(code, f"the resolver says {word}{_extended_error(message)}")
    return message


_CODES = {
    dns_message.FORMERR: "resolver-formerr",
    dns_message.SERVFAIL: "resolver-servfail",
    dns_message.REFUSED: "resolver-refused",
}


def _extended_error(message: Message) -> str:
    """What the resolver adds about the reason (RFC 8914)."""
    if message.extended_error is None:
        return ""
    code, text = message.extended_error
    known = dns_message.EXTENDED_ERRORS
    word = known[code] if code < len(known) else f"error {code}"
    return f" ({word}: {_printable(text)})" if text else f" ({word})"


def _read_https(message: Message, question: Question, port: int, steps: int) -> HttpsAnswer:
    name, ttl, steps = _follow(message, question, steps)
    while records := _records(message, name, dns_message.HTTPS):
        ttl = min(ttl, _least_ttl(records))
        services = [message.service(record) for record in records]
        aliases = sorted(service.target for service in services if service.priority == 0)
        if not aliases:
            return _services(name, services, port, _ttl(ttl), steps)
        # RFC 9460 section 2.4.2: ServiceMode records beside AliasMode are ignored.
        owner, name = name, aliases[0]
        if not name:
            why = f"{name_to_text(owner)} says by its AliasMode record that it offers no service"
            return HttpsAnswer(name_to_text(owner), _ttl(ttl), steps=steps, why=why)
        steps = _step(steps, question)
        name, ttl, steps = _follow(message, question, steps, name, ttl)
        if not _records(message, name, dns_message.HTTPS):
            return HttpsAnswer(_host_name(name), _ttl(ttl), alias=_host_name(name), steps=steps)
    text = name_to_text(name)
    why = f"{text} has no HTTPS record"
    if message.rcode == dns_message.NXDOMAIN:
        # The name made for a port exists only for the record's sake.
        made = question.name.startswith("_")
        why = f"there is no HTTPS record {text}" if made else f"{text} does not exist"
    return HttpsAnswer(text, _negative_ttl(message, ttl), steps=steps, why=why, doubtful=True)


def _read_addresses(message: Message, question: Question) -> AddressAnswer:
    name, ttl, _ = _follow(message, question, 0)
    text = name_to_text(name)
    records = _records(message, name, dns_message.TYPES[question.type])
    if not records:
        missing = message.rcode == dns_message.NXDOMAIN
        why = f"{text} does not exist" if missing else f"{text} has no {question.type} record"
        return AddressAnswer(text, _negative_ttl(message, ttl), why=why, doubtful=missing)
    found = [message.address(record) for record in records]
    addresses = _usable(found)
    # 0.0.0.0 and :: are how filtering resolvers say no.
    blocked = None if addresses else f"the resolver blocks {text}: it answers with {found[0]}"
    return AddressAnswer(text, _ttl(min(ttl, _least_ttl(records))), addresses, blocked, blocked is not None)


def _records(message: Message, name: Name, type_: int) -> list[Record]:
    return [
        record
        for record in message.answers
        if record.type == type_ and record.class_ == dns_message.IN and record.name == name
    ]


def _least_ttl(records: list[Record]) -> int:
    return min(record.ttl for record in records)


def _follow(
    message: Message, question: Question, steps: int, name: Name | None = None, ttl: int = TTL_LIMIT
) -> tuple[Name, int, int]:
    """Follows the CNAME records in the message from the question's name, or from ``name``."""
    name = dns_message.name_from_text(question.name) if name is None else name
    while records := _records(message, name, dns_message.CNAME):
        steps = _step(steps, question)
        ttl = min(ttl, _least_ttl(records))
        name = message.target(records[0])
    return name, ttl, steps


def _step(steps: int, question: Question) -> int:
    if steps >= ALIAS_LIMIT:
        raise AnswerError("resolver-alias-chain", f"{question.name} leads through more than {ALIAS_LIMIT} aliases")
    return steps + 1


def _services(owner: Name, services: list[Service], port: int, ttl: int, steps: int) -> HttpsAnswer:
    endpoints: list[Endpoint] = []
    refused: list[str] = []
    # Records of one priority in an order of their own: the same answer always leads to the same choice.
    for service in sorted(services, key=lambda service: (service.priority, service.target, service.ech or b"")):
        try:
            endpoints.append(_endpoint(owner, service, port))
        except AnswerError as error:
            refused.append(error.message)
    text = name_to_text(owner)
    why = None if endpoints else f"no HTTPS record of {text} can be used: {refused[0]}"
    return HttpsAnswer(text, ttl, tuple(endpoints), steps=steps, why=why)


def _endpoint(owner: Name, service: Service, port: int) -> Endpoint:
    # RFC 9460 section 8: a record whose mandatory keys are not all understood is not for us.
    for key in service.mandatory:
        if key not in dns_message.UNDERSTOOD:
            raise AnswerError("resolver-unusable", f"it makes key{key} mandatory, which this client does not know")
    alpn = tuple(identifier.decode("ascii", "replace") for identifier in service.alpn or ())
    if not service.no_default_alpn and "http/1.1" not in alpn:
        alpn += ("http/1.1",)
    # A WebSocket needs http/1.1; a server that lists h2 alone may still choose it when only http/1.1 is offered.
    if not {"h2", "http/1.1"} & set(alpn):
        raise AnswerError("resolver-unusable", f"it offers only {_printable(', '.join(alpn))}")
    if service.port == 0:
        raise AnswerError("resolver-unusable", "its port is 0")
    return Endpoint(
        priority=service.priority,
        # RFC 9460 section 2.5.2: "." stands for the record's owner.
        target=_host_name(service.target or owner),
        port=service.port or port,
        alpn=alpn,
        ech=service.ech,
        hints=_usable(service.hints),
    )


def _host_name(name: Name) -> str:
    """The name as text, if it can be a host's: it goes into log lines, look-ups and the cache."""
    text = name_to_text(name)
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise AnswerError("resolver-unusable", f"it points to {_printable(text)}, which is no host name")
    return text


def _usable(addresses: Iterable[str]) -> tuple[str, ...]:
    usable: dict[str, None] = {}
    for text in addresses:
        address = ipaddress.ip_address(text)
        if not address.is_unspecified and not address.is_multicast and text != "255.255.255.255":
            usable[str(address)] = None
    return tuple(usable)[:ADDRESS_LIMIT]


def _ttl(ttl: int) -> int:
    return max(0, min(ttl, TTL_LIMIT))


def _negative_ttl(message: Message, ttl: int) -> int:
    """RFC 2308 section 5: the least of the SOA's own TTL and its MINIMUM field."""
    for record in message.authorities:
        if record.type == dns_message.SOA:
            return _ttl(min(ttl, record.ttl, message.minimum(record)))
    return min(_ttl(ttl), _NEGATIVE_TTL)


def _printable(text: str) -> str:
    """At most 100 visible characters of what a stranger sent, for a message."""
    return "".join(character if character.isprintable() else "?" for character in text[:100])
