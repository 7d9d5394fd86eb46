"""The reader of DNS messages, held against dnspython."""

from __future__ import annotations

import base64
import contextlib
import struct
import time
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdatatype
import dns.rrset
import pytest
from dns.rdtypes.svcbbase import ParamKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ech_workers.dns_message import (
    CNAME,
    HTTPS,
    SOA,
    TYPES,
    Malformed,
    Message,
    name_from_text,
    name_to_text,
    query,
)

LIST = b"\x00\x08\xfe\x0d\x00\x04abcd"

labels = st.binary(min_size=1, max_size=12)
names = st.lists(labels, min_size=1, max_size=5).map(lambda parts: dns.name.Name([*parts, b""]))
ttls = st.integers(0, 2**31 - 1)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "alpn": st.lists(st.sampled_from(["h2", "h3", "http/1.1"]), min_size=1, max_size=3).map(",".join),
        "port": st.integers(0, 65535).map(str),
        "ipv4hint": st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=3).map(",".join),
        "ech": st.just(base64.b64encode(LIST).decode()),
        "ipv6hint": st.lists(st.ip_addresses(v=6).map(str), min_size=1, max_size=3).map(",".join),
        "key700": st.text("abc", min_size=1, max_size=9),
    },
)
services = st.tuples(st.integers(1, 65535), names, parameters).map(
    lambda made: f"{made[0]} {made[1].to_text()} " + " ".join(f'{key}="{value}"' for key, value in made[2].items())
)
records = st.one_of(
    st.tuples(names, ttls, st.just("HTTPS"), services),
    st.tuples(names, ttls, st.just("A"), st.ip_addresses(v=4).map(str)),
    st.tuples(names, ttls, st.just("AAAA"), st.ip_addresses(v=6).map(str)),
    st.tuples(names, ttls, st.just("CNAME"), names.map(lambda name: name.to_text())),
    st.tuples(names, ttls, st.just("SOA"), st.integers(0, 2**32 - 1).map(lambda n: f"a.test. b.test. 1 2 3 4 {n}")),
    st.tuples(names, ttls, st.just("TXT"), st.just('"something else"')),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Whole answers with names compressed as dnspython does it."""
    message = dns.message.make_response(dns.message.make_query(draw(names), "HTTPS", id=0))
    for owner, ttl, kind, data in draw(st.lists(records, max_size=6)):
        draw(st.sampled_from([message.answer, message.authority])).append(
            dns.rrset.from_text(owner, ttl, "IN", kind, data)
        )
    return message.to_wire()


def lower(name: dns.name.Name) -> tuple[bytes, ...]:
    return tuple(label.lower() for label in name.labels[:-1])


def assert_read_alike(wire: bytes, theirs: dns.message.Message) -> None:
    ours = Message(wire)
    assert ours.rcode == theirs.rcode()
    assert {(record.name, record.type) for record in ours.answers} == {
        (lower(records.name), int(records.rdtype)) for records in theirs.answer
    }
    for records in theirs.answer:
        found = [
            record
            for record in ours.answers
            if (record.name, record.type, record.class_) == (lower(records.name), records.rdtype, records.rdclass)
        ]
        if records.rdclass != 1:
            continue
        if records.rdtype == HTTPS:
            assert {_described(ours.service(record)) for record in found} == {_expected(data) for data in records}
        elif records.rdtype in (TYPES["A"], TYPES["AAAA"]):
            assert {ours.address(record) for record in found} == {_address(data.address) for data in records}
        elif records.rdtype == CNAME:
            # Of several, which there must not be, dnspython keeps the last.
            assert {ours.target(record) for record in found} >= {lower(data.target) for data in records}
        elif records.rdtype == SOA:
            assert {ours.minimum(record) for record in found} >= {data.minimum for data in records}


def _address(text: str) -> str:
    import ipaddress

    return str(ipaddress.ip_address(text))


def _described(service: Any) -> tuple[object, ...]:
    alpn, ech, hints = service.alpn, service.ech, service.hints
    return service.priority, service.target, service.mandatory, alpn, service.no_default_alpn, service.port, ech, hints


def _expected(data: Any) -> tuple[object, ...]:
    found = data.params
    hints = [
        _address(address)
        for key in (ParamKey.IPV6HINT, ParamKey.IPV4HINT)
        for address in (found[key].addresses if key in found else ())
    ]
    return (
        data.priority,
        lower(data.target),
        tuple(map(int, found[ParamKey.MANDATORY].keys)) if ParamKey.MANDATORY in found else (),
        found[ParamKey.ALPN].ids if ParamKey.ALPN in found else None,
        ParamKey.NO_DEFAULT_ALPN in found,
        found[ParamKey.PORT].port if ParamKey.PORT in found else None,
        found[ParamKey.ECH].ech if ParamKey.ECH in found else None,
        tuple(hints),
    )


@settings(deadline=None, max_examples=200)
@given(messages())
def test_answers_are_read_as_dnspython_reads_them(wire: bytes) -> None:
    assert_read_alike(wire, dns.message.from_wire(wire))


@settings(deadline=None, max_examples=500)
@given(wire=messages(), data=st.data())
def test_what_dnspython_takes_from_damaged_answers_is_taken_alike(wire: bytes, data: st.DataObject) -> None:
    damaged = bytearray(wire)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        theirs = dns.message.from_wire(bytes(damaged), keyring=False)
    except Exception:
        return
    if theirs.opcode() != dns.opcode.QUERY or theirs.edns >= 0:
        return
    assert_read_alike(bytes(damaged), theirs)


@settings(deadline=None)
@given(st.lists(st.text("abcXYZ019-_", min_size=1, max_size=20), min_size=1, max_size=6).map(".".join))
def test_queries_are_what_dnspython_makes(name: str) -> None:
    for kind in TYPES:
        theirs = dns.message.make_query(name.lower(), kind, id=0, use_edns=0, payload=4096, pad=128)
        assert query(name, kind) == theirs.to_wire()


@settings(deadline=None)
@given(names)
def test_names_become_the_text_that_dnspython_makes(name: dns.name.Name) -> None:
    folded = dns.name.Name([*lower(name), b""])
    assert name_to_text(lower(name)) == folded.to_text(omit_final_dot=True)


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, ".".join(["a" * 60] * 5), "é.test"])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(ValueError):
        name_from_text(name)


def _message(*answers: bytes) -> bytes:
    return struct.pack("!6H", 0, 0x8180, 0, len(answers), 0, 0) + b"".join(answers)


def _record(data: bytes, kind: int = HTTPS) -> bytes:
    return b"\0" + struct.pack("!2HIH", kind, 1, 60, len(data)) + data


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (b"\0\3\0\2\0", "cut"),
        (b"\0\3\0", "cut"),
        (b"\0\3\0\2\0\1\0\3\0\2\0\1", "order"),
        (b"\0\3\0\2\0\1\0\1\0\3\2h2", "order"),
        (b"\0\3\0\1\1", "port"),
        (b"\0\4\0\3abc", "hints"),
        (b"\0\4\0\0", "hints"),
        (b"\0\6\0\4abcd", "hints"),
        (b"\0\5\0\4abcd", "ECHConfigList"),
        (b"\0\5\0\0", "ECHConfigList"),
        (b"\0\1\0\0", "alpn"),
        (b"\0\1\0\1\0", "alpn"),
        (b"\0\1\0\2\5a", "alpn"),
        (b"\0\2\0\0", "no-default-alpn"),
        (b"\0\0\0\0", "mandatory"),
        (b"\0\0\0\1\0", "cut"),
        (b"\0\0\0\2\0\0", "mandatory"),
        (b"\0\0\0\2\0\5", "mandatory"),
        (b"\0\0\0\4\0\3\0\3\0\3\0\2\0\1", "mandatory"),
    ],
)
def test_each_wrong_parameter_spoils_the_record(parameters: bytes, why: str) -> None:
    message = Message(_message(_record(b"\0\1\0" + parameters)))
    with pytest.raises(Malformed, match=why):
        message.service(message.answers[0])


def test_parameters_of_an_alias_are_ignored() -> None:
    message = Message(_message(_record(b"\0\0\1a\0" + b"\0\3\0\2\0\1")))
    assert message.service(message.answers[0]).target == (b"a",)


@pytest.mark.parametrize(
    ("kind", "data"),
    [(1, b"\1\2\3"), (28, bytes(4)), (CNAME, b"\1a"), (CNAME, b"\1a\0\0"), (SOA, b"\0\0" + bytes(19)), (HTTPS, b"\0")],
)
def test_data_of_the_wrong_size_is_malformed(kind: int, data: bytes) -> None:
    message = Message(_message(_record(data, kind)))
    (record,) = message.answers
    with pytest.raises(Malformed):
        {1: message.address, 28: message.address, CNAME: message.target, SOA: message.minimum}.get(
            kind, cast("Any", message.service)
        )(record)


def test_a_name_that_points_around_is_malformed_and_costs_no_time() -> None:
    for pointers in (b"\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\xc0\xff"):
        with pytest.raises(Malformed):
            Message(struct.pack("!6H", 0, 0x8180, 1, 0, 0, 0) + pointers + b"\0\x41\0\1")
    # The longest chain of pointers that 14 bits can reach, and as many records as fit that begin at its end.
    chain = b"\0" + b"".join(struct.pack("!H", 0xC000 | (23 if i == 0 else 24 + 2 * (i - 1))) for i in range(8000))
    first = b"\0" + struct.pack("!2HIH", 16, 1, 0, len(chain)) + chain
    last = struct.pack("!H", 0xC000 | (24 + 2 * 7999)) + struct.pack("!2HIH", 1, 1, 0, 0)
    count = (65535 - 12 - len(first)) // len(last)
    started = time.monotonic()
    with pytest.raises(Malformed, match="circle"):
        Message(struct.pack("!6H", 0, 0x8180, 0, 1 + count, 0, 0) + first + last * count)
    assert time.monotonic() - started < 5


def test_a_name_over_255_bytes_is_malformed() -> None:
    long = (b"\x3f" + b"a" * 63) * 4 + b"\0"
    with pytest.raises(Malformed, match="255"):
        Message(_message(long + struct.pack("!2HIH", 1, 1, 0, 0)))


def test_a_ttl_with_its_first_bit_set_is_0() -> None:
    message = Message(_message(b"\0" + struct.pack("!2HIH", 1, 1, 0x80000001, 4) + bytes(4)))
    assert message.answers[0].ttl == 0


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_noise_is_malformed_or_read(data: bytes) -> None:
    for wire in (data, struct.pack("!6H", 0, 0x8180, 1, 2, 1, 1) + data):
        try:
            message = Message(wire)
        except Malformed:
            continue
        for record in message.answers:
            for read in (message.service, message.target, message.minimum, message.address):
                with contextlib.suppress(Malformed):
                    cast("Any", read)(record)
