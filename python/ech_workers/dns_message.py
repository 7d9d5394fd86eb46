"""DNS messages as far as the look-up needs them: one question out, the answer to it in (RFC 1035, RFC 6891, RFC 9460).

A whole library for this costs 8 MB of memory in a process that has 27, most of it for what is never used (resident, at
the start of ``proxy --plain``: 35 MB with dnspython, 27.5 MB with this). The tests hold this reader against dnspython.

Every length is checked, every list is bounded by the message, and names can only point backwards and not for long: bad
input raises ``Malformed``, in a time that grows with its size alone.
"""

from __future__ import annotations

import ipaddress
import itertools
import struct
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Malformed", "Message", "Name", "Record", "Service", "name_from_text", "name_to_text", "query"]

Name = tuple[bytes, ...]
"""Labels in lower case (RFC 4343), without the root's empty one."""

# RFC 1035 section 3.2.2, RFC 3596, RFC 6891, RFC 9460 section 14.1.
A, CNAME, SOA, AAAA, OPT, HTTPS = 1, 5, 6, 28, 41, 65
TYPES = {"A": A, "AAAA": AAAA, "HTTPS": HTTPS}

IN = 1

# RFC 1035 section 4.1.1, RFC 2136 section 2.2, RFC 6891 section 9.
RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET",
    8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 16: "BADVERS",
}  # fmt: skip
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

# RFC 8914 section 5.2.
EXTENDED_ERRORS = (
    "other", "unsupported DNSKEY algorithm", "unsupported DS digest type", "stale answer", "forged answer",
    "DNSSEC indeterminate", "DNSSEC bogus", "signature expired", "signature not yet valid", "DNSKEY missing",
    "RRSIGs missing", "no zone key bit set", "NSEC missing", "cached error", "not ready", "blocked", "censored",
    "filtered", "prohibited", "stale NXDOMAIN answer", "not authoritative", "not supported", "no reachable authority",
    "network error", "invalid data",
)  # fmt: skip

_PADDING_OPTION = 12  # RFC 7830 section 3
_EXTENDED_ERROR_OPTION = 15  # RFC 8914 section 2
_PADDING_BLOCK = 128  # RFC 8467 section 4.1
_PAYLOAD = 4096  # what Firefox announces; it has no meaning over HTTPS

_HOPS_LIMIT = 127  # as many as a name can have labels
_NAME_LIMIT = 255  # RFC 1035 section 2.3.4, the root's byte included


class Malformed(Exception):  # noqa: N818 (what it is, like the RFCs' word)
    """The bytes are no DNS message; the text says why."""


class Record(msgspec.Struct, frozen=True):
    """A resource record whose data has not been read yet."""

    name: Name
    type: int
    class_: int
    ttl: int
    start: int
    """Where its data is in the message; names in it may point outside."""
    length: int


class Service(msgspec.Struct, frozen=True):
    """The data of an HTTPS record (RFC 9460 section 2.2). An absent parameter is None."""

    priority: int
    """0 is AliasMode; its parameters are ignored (section 2.4.2)."""
    target: Name
    mandatory: tuple[int, ...] = ()
    alpn: tuple[bytes, ...] | None = None
    no_default_alpn: bool = False
    port: int | None = None
    ech: bytes | None = None
    hints: tuple[str, ...] = ()
    """IPv6 before IPv4."""


class Message:
    """A message whose sections have been walked through; ``Malformed`` if that is not possible."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire
        if len(wire) < 12:
            raise Malformed(f"it has {len(wire)} bytes, less than a DNS header")
        self.id, self.flags, questions, answers, authorities, additionals = struct.unpack_from("!6H", wire)
        self.rcode = self.flags & 15
        self.extended_error: tuple[int, str] | None = None
        at = 12
        self.questions: list[tuple[Name, int, int]] = []
        for _ in range(questions):
            name, at = self._name(at)
            self.questions.append((name, *struct.unpack("!2H", self._bytes(at, 4))))
            at += 4
        self.answers, at = self._records(answers, at)
        self.authorities, at = self._records(authorities, at)
        self.additionals, at = self._records(additionals, at)
        if at != len(wire):
            raise Malformed(f"{len(wire) - at} bytes follow its end")
        for record in self.additionals:
            if record.type == OPT:
                self._read_opt(record)

    @property
    def is_answer(self) -> bool:
        """A response to a standard query."""
        return bool(self.flags & 0x8000) and not self.flags & 0x7800

    @property
    def is_truncated(self) -> bool:
        return bool(self.flags & 0x0200)

    def target(self, record: Record) -> Name:
        """The data of a CNAME record."""
        name, end = self._name(record.start)
        _whole(end, record)
        return name

    def address(self, record: Record) -> str:
        """The data of an A or AAAA record."""
        data = self._data(record)
        if len(data) != (4 if record.type == A else 16):
            raise Malformed(f"an address of {len(data)} bytes")
        return str(ipaddress.ip_address(data))

    def minimum(self, record: Record) -> int:
        """The MINIMUM field of an SOA record."""
        _, at = self._name(record.start)
        _, at = self._name(at)
        _whole(at + 20, record)
        minimum: int = struct.unpack("!I", self._bytes(at + 16, 4))[0]
        return minimum

    def service(self, record: Record) -> Service:
        """The data of an HTTPS record."""
        priority = int.from_bytes(self._data(record)[:2], "big")
        if record.length < 3:
            raise Malformed(f"an HTTPS record of {record.length} bytes")
        target, at = self._name(record.start + 2)
        if at > record.start + record.length:
            raise Malformed("a name leaves its HTTPS record")
        parameters = dict(_parameters(self._wire[at : record.start + record.length]))
        return Service(priority, target) if priority == 0 else _service(priority, target, parameters)

    def _records(self, count: int, at: int) -> tuple[list[Record], int]:
        records = []
        for _ in range(count):
            name, at = self._name(at)
            kind, class_, ttl, length = struct.unpack("!2HIH", self._bytes(at, 10))
            at += 10
            self._bytes(at, length)
            # RFC 2181 section 8: a TTL with the first bit set is 0.
            records.append(Record(name, kind, class_, ttl if ttl < 1 << 31 else 0, at, length))
            at += length
        return records, at

    def _read_opt(self, record: Record) -> None:
        # RFC 6891 section 6.1.3: the upper bits of the rcode are where other records have their TTL.
        self.rcode |= record.ttl >> 24 << 4
        data, at = self._data(record), 0
        while at < len(data):
            if len(data) - at < 4:
                raise Malformed("an EDNS option is cut")
            option, length = struct.unpack_from("!2H", data, at)
            value = data[at + 4 : at + 4 + length]
            if len(value) != length:
                raise Malformed("an EDNS option is cut")
            if option == _EXTENDED_ERROR_OPTION and length >= 2 and self.extended_error is None:
                code = int.from_bytes(value[:2], "big")
                self.extended_error = code, value[2:].decode("utf-8", "replace").rstrip("\0")
            at += 4 + length

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count > len(self._wire):
            raise Malformed(f"it is cut at byte {len(self._wire)}")
        return self._wire[at : at + count]

    def _data(self, record: Record) -> bytes:
        return self._wire[record.start : record.start + record.length]

    def _name(self, at: int) -> tuple[Name, int]:
        """The name at a position, and where it ends there (RFC 1035 section 4.1.4)."""
        labels: list[bytes] = []
        length = 1
        end = None
        earliest = at
        hops = 0
        while True:
            size = self._bytes(at, 1)[0]
            if size & 0xC0 == 0xC0:
                to = int.from_bytes(self._bytes(at, 2), "big") & 0x3FFF
                end = at + 2 if end is None else end
                hops += 1
                # Strictly backwards: a loop is not possible. A long way without labels in between is nobody's need.
                if to >= earliest or hops > _HOPS_LIMIT:
                    raise Malformed(f"the name at byte {at} points in a circle")
                at = earliest = to
                continue
            if size & 0xC0:
                raise Malformed(f"a label of an unknown kind at byte {at}")
            at += 1
            if size == 0:
                return tuple(labels), at if end is None else end
            length += size + 1
            if length > _NAME_LIMIT:
                raise Malformed("a name is longer than 255 bytes")
            labels.append(self._bytes(at, size).lower())
            at += size


def query(name: str, type_: str) -> bytes:
    """A query in wire form: id 0 (RFC 8484 section 4.1), recursion desired, padded to a block (RFC 8467)."""
    question = b"".join(bytes([len(label)]) + label for label in name_from_text(name)) + b"\0"
    question += struct.pack("!2H", TYPES[type_], IN)
    fixed = 12 + len(question) + 11 + 4
    padding = bytes(-fixed % _PADDING_BLOCK)
    header = struct.pack("!6H", 0, 0x0100, 1, 0, 0, 1)
    option = struct.pack("!2H", _PADDING_OPTION, len(padding)) + padding
    return header + question + b"\0" + struct.pack("!2HIH", OPT, _PAYLOAD, 0, len(option)) + option


def name_from_text(text: str) -> Name:
    """A host name or the name of a record, in ASCII. Raises ValueError."""
    labels = tuple(label.encode("ascii").lower() for label in text.removesuffix(".").split("."))
    if any(not 1 <= len(label) <= 63 for label in labels) or sum(map(len, labels)) + len(labels) >= _NAME_LIMIT:
        raise ValueError(f"{text!r} is no DNS name")
    return labels


def name_to_text(name: Name) -> str:
    """The name as zone files have it (RFC 1035 section 5.1), without the final dot; the root is "."."""
    return ".".join("".join(map(_character, label)) for label in name) or "."


def _character(byte: int) -> str:
    if byte in b'.\\"();@$':
        return "\\" + chr(byte)
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03}"


def _whole(end: int, record: Record) -> None:
    if end != record.start + record.length:
        raise Malformed("the data of a record is longer or shorter than it says")


# RFC 9460 section 14.3.2.
MANDATORY, ALPN, NO_DEFAULT_ALPN, PORT, IPV4HINT, ECH, IPV6HINT = range(7)
UNDERSTOOD = frozenset({ALPN, NO_DEFAULT_ALPN, PORT, IPV4HINT, ECH, IPV6HINT})


def _parameters(data: bytes) -> Iterator[tuple[int, bytes]]:
    at, last = 0, -1
    while at < len(data):
        if len(data) - at < 4:
            raise Malformed("a parameter of an HTTPS record is cut")
        key, length = struct.unpack_from("!2H", data, at)
        # RFC 9460 section 2.2: strictly ascending, so that none is there twice.
        if key <= last:
            raise Malformed("the parameters of an HTTPS record are not in order")
        value = data[at + 4 : at + 4 + length]
        if len(value) != length:
            raise Malformed("a parameter of an HTTPS record is cut")
        yield key, value
        at += 4 + length
        last = key


def _service(priority: int, target: Name, parameters: dict[int, bytes]) -> Service:
    """Checks each parameter's form (RFC 9460 sections 7 and 8, RFC 9848 section 3): one that is wrong spoils the record."""
    mandatory = tuple(_numbers(parameters[MANDATORY])) if MANDATORY in parameters else ()
    if MANDATORY in parameters and (
        not mandatory
        or any(first >= second for first, second in itertools.pairwise(mandatory))
        or MANDATORY in mandatory
        or not parameters.keys() >= set(mandatory)
    ):
        raise Malformed("the mandatory parameter of an HTTPS record is wrong")
    alpn = tuple(_strings(parameters[ALPN])) if ALPN in parameters else None
    if alpn == ():
        raise Malformed("the alpn parameter of an HTTPS record is empty")
    if NO_DEFAULT_ALPN in parameters and (parameters[NO_DEFAULT_ALPN] or alpn is None):
        raise Malformed("the no-default-alpn parameter of an HTTPS record is wrong")
    port = parameters.get(PORT)
    if port is not None and len(port) != 2:
        raise Malformed("the port parameter of an HTTPS record is wrong")
    ech = parameters.get(ECH)
    if ech is not None and (len(ech) < 6 or int.from_bytes(ech[:2], "big") != len(ech) - 2):
        raise Malformed("the ech parameter of an HTTPS record is no ECHConfigList")
    return Service(
        priority=priority,
        target=target,
        mandatory=mandatory,
        alpn=alpn,
        no_default_alpn=NO_DEFAULT_ALPN in parameters,
        port=None if port is None else int.from_bytes(port, "big"),
        ech=ech,
        hints=(*_hints(parameters.get(IPV6HINT), 16), *_hints(parameters.get(IPV4HINT), 4)),
    )


def _numbers(data: bytes) -> Iterator[int]:
    if len(data) % 2:
        raise Malformed("a list of keys in an HTTPS record is cut")
    return (int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))


def _strings(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        length = data[at]
        value = data[at + 1 : at + 1 + length]
        if not length or len(value) != length:
            raise Malformed("the alpn parameter of an HTTPS record is cut")
        yield value
        at += 1 + length


def _hints(data: bytes | None, size: int) -> Iterator[str]:
    if data is None:
        return
    if not data or len(data) % size:
        raise Malformed("the address hints of an HTTPS record are cut")
    for at in range(0, len(data), size):
        yield str(ipaddress.ip_address(data[at : at + size]))
