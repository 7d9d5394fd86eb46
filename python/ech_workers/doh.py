"""DNS messages for the look-up over HTTPS (RFC 8484): questions out, checked answers in; no input or output here.

An answer is taken only if it is one to the question that was asked, whole, and well formed. What a resolver says about
a name that has no usable record is an answer too: ``why`` says it, and the lists are empty. What makes the exchange
itself worthless raises ``AnswerError``, and another resolver should be asked.

dnspython is imported when the first question is asked: it costs 7 MB (docs/performance.md), and a start with a warm
cache asks none.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    import dns.message
    import dns.name
    import dns.rdatatype
    import dns.rrset
    from dns.rdtypes.svcbbase import SVCBBase

__all__ = [
    "ALIAS_LIMIT",
    "AddressAnswer",
    "Answer",
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

# RFC 8467 section 4.1.
_PADDING = 128

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


Answer = HttpsAnswer | AddressAnswer


def https_name(host: str, port: int = 443) -> str:
    """The owner of the HTTPS records of https://host:port (RFC 9460 section 9.1)."""
    return host if port == 443 else f"_{port}._https.{host}"


def query(question: Question) -> bytes:
    """The query in wire form: id 0 (RFC 8484 section 4.1), recursion desired, padded (RFC 8467).

    As Firefox's resolver it asks that nothing of the client's address be handed on (RFC 7871 section 7.1.2).
    """
    import dns.edns
    import dns.message

    # Family 1 (IPv4), 0 bits of it.
    no_subnet = dns.edns.GenericOption(dns.edns.OptionType.ECS, b"\0\1\0\0")
    message = dns.message.make_query(
        question.name, question.type, id=0, use_edns=0, payload=4096, options=[no_subnet], pad=_PADDING
    )
    return message.to_wire()


def request(path: str, message: bytes, method: Method) -> tuple[str, bytes]:
    """Path and body of the HTTP request that carries a query (RFC 8484 section 4.1); the header fields are the profile's."""
    if method == "POST":
        return path, message
    text = base64.urlsafe_b64encode(message).rstrip(b"=").decode("ascii")
    return f"{path}{'&' if '?' in path else '?'}dns={text}", b""


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
    import dns.rdatatype

    message = _read(wire, question)
    name, ttl, steps = _follow(message, question, steps)
    while True:
        records = _records(message, name, dns.rdatatype.HTTPS)
        if records is None:
            break
        ttl = min(ttl, records.ttl)
        alias = next((record for record in sorted(records) if record.priority == 0), None)
        if alias is None:
            return _services(name, records, port, _ttl(ttl), steps)
        # RFC 9460 section 2.4.2: ServiceMode records beside AliasMode are ignored.
        owner, name = name, alias.target
        if len(name.labels) <= 1:
            why = f"{_text(owner)} says by its AliasMode record that it offers no service"
            return HttpsAnswer(_text(owner), _ttl(ttl), steps=steps, why=why)
        steps = _step(steps, question)
        name, ttl, steps = _follow(message, question, steps, name, ttl)
        if _records(message, name, dns.rdatatype.HTTPS) is None:
            return HttpsAnswer(_host_name(name), _ttl(ttl), alias=_host_name(name), steps=steps)
    why = f"{_text(name)} has no HTTPS record"
    if _is_nxdomain(message):
        # The name made for a port exists only for the record's sake.
        made = question.name.startswith("_")
        why = f"there is no HTTPS record {_text(name)}" if made else f"{_text(name)} does not exist"
    return HttpsAnswer(_text(name), _negative_ttl(message, ttl), steps=steps, why=why, doubtful=True)


def read_address_answer(wire: bytes, question: Question) -> AddressAnswer:
    """Reads the answer to a question for A or AAAA records. Raises AnswerError."""
    import dns.rdatatype

    message = _read(wire, question)
    name, ttl, _ = _follow(message, question, 0)
    records = _records(message, name, dns.rdatatype.from_text(question.type))
    if records is None:
        missing = _is_nxdomain(message)
        why = f"{_text(name)} does not exist" if missing else f"{_text(name)} has no {question.type} record"
        return AddressAnswer(_text(name), _negative_ttl(message, ttl), why=why, doubtful=missing)
    addresses = _usable(record.address for record in records)
    # 0.0.0.0 and :: are how filtering resolvers say no.
    blocked = None if addresses else f"the resolver blocks {_text(name)}: it answers with {next(iter(records)).address}"
    return AddressAnswer(_text(name), _ttl(min(ttl, records.ttl)), addresses, blocked, blocked is not None)


_MEDIA_TYPE = "application/dns-message"


def _read(wire: bytes, question: Question) -> dns.message.Message:
    import dns.flags
    import dns.message
    import dns.name
    import dns.opcode
    import dns.rcode
    import dns.rdataclass
    import dns.rdatatype

    if len(wire) < 12:
        raise AnswerError("resolver-malformed", f"the answer has {len(wire)} bytes, less than a DNS header")
    if wire[:2] != b"\0\0":
        raise AnswerError("resolver-mismatch", "the answer has another id than the question")
    if wire[2] & 0x02:
        # RFC 8484 section 4.2.1: there is no larger transport to ask again over.
        raise AnswerError("resolver-truncated", "the answer is marked as truncated")
    try:
        message = dns.message.from_wire(wire, keyring=False)
    except Exception as error:  # dnspython lets ValueError, struct.error and others out beside its own
        raise AnswerError("resolver-malformed", f"the answer is malformed: {_printable(str(error))}") from None
    if not message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY:
        raise AnswerError("resolver-mismatch", "the message is no answer to a query")
    rcode = message.rcode()
    asked = message.question
    matches = (
        len(asked) == 1
        and asked[0].name == dns.name.from_text(question.name)
        and asked[0].rdtype == dns.rdatatype.from_text(question.type)
        and asked[0].rdclass == dns.rdataclass.IN
    )
    # A server that could not read the query may leave the question out when it says so.
    if not matches and not (not asked and rcode in (dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP)):
        raise AnswerError("resolver-mismatch", "the answer is to another question")
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        code = _RCODES.get(int(rcode), "resolver-rcode")
        raise AnswerError(code, f"the resolver says {dns.rcode.to_text(rcode)}{_extended_error(message)}")
    return message


# RFC 1035 section 4.1.1.
_RCODES = {1: "resolver-formerr", 2: "resolver-servfail", 5: "resolver-refused"}


def _is_nxdomain(message: dns.message.Message) -> bool:
    import dns.rcode

    return message.rcode() == dns.rcode.NXDOMAIN


def _extended_error(message: dns.message.Message) -> str:
    """What the resolver adds about the reason (RFC 8914)."""
    import dns.edns

    for option in message.options:
        if isinstance(option, dns.edns.EDEOption):
            name = option.code.name if isinstance(option.code, dns.edns.EDECode) else str(int(option.code))
            text = f": {_printable(option.text)}" if option.text else ""
            return f" ({name.lower().replace('_', ' ')}{text})"
    return ""


def _records(
    message: dns.message.Message, name: dns.name.Name, type_: dns.rdatatype.RdataType
) -> dns.rrset.RRset | None:
    import dns.message
    import dns.rdataclass

    return message.get_rrset(dns.message.ANSWER, name, dns.rdataclass.IN, type_)


def _follow(
    message: dns.message.Message,
    question: Question,
    steps: int,
    name: dns.name.Name | None = None,
    ttl: int = TTL_LIMIT,
) -> tuple[dns.name.Name, int, int]:
    """Follows the CNAME records in the message from the question's name, or from ``name``."""
    import dns.name
    import dns.rdatatype

    name = dns.name.from_text(question.name) if name is None else name
    while records := _records(message, name, dns.rdatatype.CNAME):
        steps = _step(steps, question)
        ttl = min(ttl, records.ttl)
        name = records[0].target
    return name, ttl, steps


def _step(steps: int, question: Question) -> int:
    if steps >= ALIAS_LIMIT:
        raise AnswerError("resolver-alias-chain", f"{question.name} leads through more than {ALIAS_LIMIT} aliases")
    return steps + 1


def _services(owner: dns.name.Name, records: dns.rrset.RRset, port: int, ttl: int, steps: int) -> HttpsAnswer:
    endpoints: list[Endpoint] = []
    refused: list[str] = []
    # sorted() also orders records of one priority: the same answer always leads to the same choice.
    for record in sorted(records, key=lambda record: (record.priority, record.to_wire())):
        try:
            endpoints.append(_endpoint(owner, record, port))
        except AnswerError as error:
            refused.append(error.message)
    why = None if endpoints else f"no HTTPS record of {_text(owner)} can be used: {refused[0]}"
    return HttpsAnswer(_text(owner), ttl, tuple(endpoints), steps=steps, why=why)


def _endpoint(owner: dns.name.Name, record: SVCBBase, port: int) -> Endpoint:
    from dns.rdtypes.svcbbase import ParamKey

    understood = {
        ParamKey.ALPN,
        ParamKey.NO_DEFAULT_ALPN,
        ParamKey.PORT,
        ParamKey.IPV4HINT,
        ParamKey.ECH,
        ParamKey.IPV6HINT,
    }
    parameters = record.params
    # RFC 9460 section 8: a record whose mandatory keys are not all understood is not for us.
    for key in parameters[ParamKey.MANDATORY].keys if ParamKey.MANDATORY in parameters else ():
        if key not in understood:
            raise AnswerError("resolver-unusable", f"it makes key{int(key)} mandatory, which this client does not know")
    alpn = tuple(
        identifier.decode("ascii", "replace")
        for identifier in (parameters[ParamKey.ALPN].ids if ParamKey.ALPN in parameters else ())
    )
    if ParamKey.NO_DEFAULT_ALPN not in parameters and "http/1.1" not in alpn:
        alpn += ("http/1.1",)
    # A WebSocket needs http/1.1; a server that lists h2 alone may still choose it when only http/1.1 is offered.
    if not {"h2", "http/1.1"} & set(alpn):
        raise AnswerError("resolver-unusable", f"it offers only {_printable(', '.join(alpn))}")
    number = parameters[ParamKey.PORT].port if ParamKey.PORT in parameters else port
    if number == 0:
        raise AnswerError("resolver-unusable", "its port is 0")
    # RFC 9460 section 2.5.2: "." stands for the record's owner.
    target = owner if len(record.target.labels) <= 1 else record.target
    hints = [
        address
        for key in (ParamKey.IPV6HINT, ParamKey.IPV4HINT)
        if key in parameters
        for address in parameters[key].addresses
    ]
    return Endpoint(
        priority=record.priority,
        target=_host_name(target),
        port=number,
        alpn=alpn,
        ech=parameters[ParamKey.ECH].ech if ParamKey.ECH in parameters else None,
        hints=_usable(hints),
    )


def _host_name(name: dns.name.Name) -> str:
    """The name as text, if it can be a host's: it goes into log lines, look-ups and the cache."""
    text = _text(name)
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise AnswerError("resolver-unusable", f"it points to {_printable(text)}, which is no host name")
    return text


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _usable(addresses: Iterable[str]) -> tuple[str, ...]:
    usable: dict[str, None] = {}
    for text in addresses:
        address = ipaddress.ip_address(text)
        if not address.is_unspecified and not address.is_multicast and text != "255.255.255.255":
            usable[str(address)] = None
    return tuple(usable)[:ADDRESS_LIMIT]


def _ttl(ttl: int) -> int:
    return max(0, min(ttl, TTL_LIMIT))


def _negative_ttl(message: dns.message.Message, ttl: int) -> int:
    """RFC 2308 section 5: the least of the SOA's own TTL and its MINIMUM field."""
    import dns.rdatatype

    for records in message.authority:
        if records.rdtype == dns.rdatatype.SOA and len(records):
            return _ttl(min(ttl, records.ttl, records[0].minimum))
    return min(_ttl(ttl), _NEGATIVE_TTL)


def _printable(text: str) -> str:
    """At most 100 visible characters of what a stranger sent, for a message."""
    return "".join(character if character.isprintable() else "?" for character in text[:100])
