"""Answers over DoH: what a resolver may say, and what it must not get away with."""

from __future__ import annotations

import base64
import struct
import time

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ech_workers.doh import (
    ALIAS_LIMIT,
    AnswerError,
    Question,
    https_name,
    query,
    read_address_answer,
    read_https_answer,
    read_response,
    request,
)

LIST = b"\x00\x08\xfe\x0d\x00\x04abcd"
ECH = base64.b64encode(LIST).decode()
HTTPS = Question("secret.test", "HTTPS")


def answer(
    question: Question, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, authority: str | None = None
) -> dns.message.Message:
    """A whole answer; each record is "OWNER TTL TYPE DATA"."""
    message = dns.message.make_response(dns.message.from_wire(query(question)))
    message.set_rcode(rcode)
    for line in records:
        owner, ttl, kind, data = line.split(" ", 3)
        message.answer.append(dns.rrset.from_text(owner + ".", int(ttl), "IN", kind, data))
    if authority:
        owner, ttl, kind, data = authority.split(" ", 3)
        message.authority.append(dns.rrset.from_text(owner + ".", int(ttl), "IN", kind, data))
    return message


def wire(question: Question, *records: str) -> bytes:
    return answer(question, *records).to_wire()


# ---------------------------------------------------------------- the question


def test_a_query_has_id_0_wants_recursion_and_is_padded_to_a_block() -> None:
    for name in ("a.test", "a-much-longer-name.of.several.labels.example.test"):
        message = query(Question(name, "HTTPS"))
        assert message[:2] == b"\0\0"
        assert len(message) % 128 == 0
        parsed = dns.message.from_wire(message)
        assert parsed.flags == dns.flags.RD
        assert parsed.edns == 0


def test_the_same_question_is_the_same_url_so_that_caches_may_answer() -> None:
    paths = {request("/dns-query", query(HTTPS), "GET")[0] for _ in range(3)}
    assert len(paths) == 1


def test_get_carries_the_message_in_base64url_without_padding() -> None:
    message = query(HTTPS)
    path, body = request("/dns-query", message, "GET")
    text = path.removeprefix("/dns-query?dns=")
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == message
    assert "=" not in text
    assert body == b""
    assert request("/q?key=1", message, "GET")[0].startswith("/q?key=1&dns=")


def test_post_carries_the_message_as_body() -> None:
    message = query(HTTPS)
    path, body = request("/dns-query", message, "POST")
    assert (path, body) == ("/dns-query", message)


def test_another_port_than_443_has_its_own_name() -> None:
    assert https_name("secret.test") == "secret.test"
    assert https_name("secret.test", 8450) == "_8450._https.secret.test"


# ---------------------------------------------------------------- HTTP around the answer


def test_an_http_error_is_named_with_its_status() -> None:
    with pytest.raises(AnswerError, match="HTTP status 503"):
        read_response(503, [("Content-Type", "application/dns-message")], b"")


def test_a_web_page_is_no_answer() -> None:
    with pytest.raises(AnswerError, match="text/html, not DNS"):
        read_response(200, [("Content-Type", "text/html; charset=utf-8")], b"<html>")
    with pytest.raises(AnswerError, match="no content type"):
        read_response(200, [], b"")


def test_time_spent_in_caches_is_told() -> None:
    kind = ("content-type", "application/dns-message")
    assert read_response(200, [kind, ("Age", "120")], b"") == 120
    for strange in ("-1", "1e9", "soon", "9" * 40, "²"):
        assert read_response(200, [kind, ("age", strange)], b"") == 0


# ---------------------------------------------------------------- HTTPS records


def test_a_record_gives_configuration_target_port_protocols_and_hints() -> None:
    data = f'1 . alpn="h2" port=8443 ipv4hint=192.0.2.1,0.0.0.0 ech={ECH} ipv6hint=2001:db8::1'
    read = read_https_answer(wire(HTTPS, f"secret.test 300 HTTPS {data}"), HTTPS, 443)
    (endpoint,) = read.endpoints
    assert endpoint.ech == LIST
    assert endpoint.target == "secret.test"
    assert endpoint.port == 8443
    assert endpoint.alpn == ("h2", "http/1.1")
    assert endpoint.hints == ("2001:db8::1", "192.0.2.1")
    assert read.ttl == 300
    assert read.why is None


def test_a_record_on_another_port_keeps_that_port_and_names_its_target() -> None:
    question = Question(https_name("secret.test", 8450), "HTTPS")
    read = read_https_answer(wire(question, f"{question.name} 60 HTTPS 1 secret.test. ech={ECH}"), question, 8450)
    assert (read.endpoints[0].target, read.endpoints[0].port) == ("secret.test", 8450)


def test_records_come_in_the_order_of_priority_and_the_first_with_ech_is_chosen() -> None:
    read = read_https_answer(
        wire(
            HTTPS,
            f"secret.test 60 HTTPS 3 c.test. ech={ECH}",
            "secret.test 60 HTTPS 1 a.test. alpn=h2",
            f"secret.test 60 HTTPS 2 b.test. ech={ECH}",
        ),
        HTTPS,
        443,
    )
    assert [endpoint.target for endpoint in read.endpoints] == ["a.test", "b.test", "c.test"]
    chosen = read.with_ech()
    assert chosen is not None
    assert chosen.target == "b.test"


def test_records_of_one_priority_lead_to_the_same_choice_in_every_order() -> None:
    records = [f"secret.test 60 HTTPS 1 {name}.test. ech={ECH}" for name in "abc"]
    forward = read_https_answer(wire(HTTPS, *records), HTTPS, 443)
    backward = read_https_answer(wire(HTTPS, *reversed(records)), HTTPS, 443)
    assert forward.endpoints == backward.endpoints


def test_a_record_with_an_unknown_mandatory_key_is_left_out() -> None:
    read = read_https_answer(
        wire(
            HTTPS,
            f'secret.test 60 HTTPS 1 . mandatory=key667 key667="x" ech={ECH}',
            f"secret.test 60 HTTPS 2 b.test. mandatory=ech,alpn alpn=h2 ech={ECH}",
        ),
        HTTPS,
        443,
    )
    assert [endpoint.target for endpoint in read.endpoints] == ["b.test"]
    alone = read_https_answer(wire(HTTPS, 'secret.test 60 HTTPS 1 . mandatory=key667 key667="x"'), HTTPS, 443)
    assert alone.endpoints == ()
    assert "key667 mandatory" in (alone.why or "")


def test_a_record_for_http3_alone_is_left_out() -> None:
    read = read_https_answer(wire(HTTPS, f"secret.test 60 HTTPS 1 . alpn=h3 no-default-alpn ech={ECH}"), HTTPS, 443)
    assert read.endpoints == ()
    assert "only h3" in (read.why or "")
    both = read_https_answer(wire(HTTPS, f"secret.test 60 HTTPS 1 . alpn=h3 ech={ECH}"), HTTPS, 443)
    assert both.endpoints[0].alpn == ("h3", "http/1.1")


def test_cname_chains_are_followed_with_the_least_ttl() -> None:
    read = read_https_answer(
        wire(
            HTTPS,
            "secret.test 50 CNAME one.test.",
            "one.test 20 CNAME two.test.",
            f"two.test 300 HTTPS 1 . ech={ECH}",
        ),
        HTTPS,
        443,
    )
    assert read.endpoints[0].target == "two.test"
    assert (read.ttl, read.steps) == (20, 2)


def test_an_alias_is_asked_for_next_and_its_steps_count() -> None:
    read = read_https_answer(wire(HTTPS, "secret.test 60 HTTPS 0 pool.test."), HTTPS, 443)
    assert (read.alias, read.endpoints, read.steps) == ("pool.test", (), 1)
    question = Question("pool.test", "HTTPS")
    then = read_https_answer(wire(question, f"pool.test 30 HTTPS 1 . ech={ECH}"), question, 443, steps=read.steps)
    assert then.endpoints[0].target == "pool.test"


def test_an_alias_answered_in_the_same_message_needs_no_second_question() -> None:
    read = read_https_answer(
        wire(
            HTTPS,
            "secret.test 60 HTTPS 0 pool.test.",
            "pool.test 60 CNAME real.test.",
            f"real.test 10 HTTPS 1 . ech={ECH}",
        ),
        HTTPS,
        443,
    )
    assert (read.endpoints[0].target, read.steps, read.ttl) == ("real.test", 2, 10)


def test_service_records_beside_an_alias_are_ignored() -> None:
    read = read_https_answer(
        wire(HTTPS, f"secret.test 60 HTTPS 1 evil.test. ech={ECH}", "secret.test 60 HTTPS 0 pool.test."), HTTPS, 443
    )
    assert (read.alias, read.endpoints) == ("pool.test", ())


def test_an_alias_to_the_root_says_there_is_no_service() -> None:
    read = read_https_answer(wire(HTTPS, "secret.test 60 HTTPS 0 ."), HTTPS, 443)
    assert read.alias is None
    assert "offers no service" in (read.why or "")


@pytest.mark.parametrize("kind", ["CNAME {}.", "HTTPS 0 {}."])
def test_alias_loops_and_long_chains_end_at_the_limit(kind: str) -> None:
    loop = wire(HTTPS, "secret.test 60 " + kind.format("a.test"), "a.test 60 " + kind.format("secret.test"))
    with pytest.raises(AnswerError, match=f"more than {ALIAS_LIMIT} aliases"):
        read_https_answer(loop, HTTPS, 443)
    with pytest.raises(AnswerError, match="aliases"):
        read_https_answer(wire(HTTPS, "secret.test 60 " + kind.format("b.test")), HTTPS, 443, steps=ALIAS_LIMIT)


def test_no_record_and_no_name_are_told_apart_and_kept_as_long_as_the_zone_says() -> None:
    soa = "test 900 SOA ns.test. root.test. 1 2 3 4 60"
    nothing = read_https_answer(answer(HTTPS, authority=soa).to_wire(), HTTPS, 443)
    assert (nothing.endpoints, nothing.ttl) == ((), 60)
    assert nothing.why == "secret.test has no HTTPS record"
    missing = read_https_answer(answer(HTTPS, rcode=dns.rcode.NXDOMAIN, authority=soa).to_wire(), HTTPS, 443)
    assert missing.why == "secret.test does not exist"
    port = Question(https_name("secret.test", 8450), "HTTPS")
    made = read_https_answer(answer(port, rcode=dns.rcode.NXDOMAIN).to_wire(), port, 8450)
    assert made.why == "there is no HTTPS record _8450._https.secret.test"
    assert read_https_answer(wire(HTTPS), HTTPS, 443).ttl <= 60


def test_a_target_that_is_no_host_name_is_never_used() -> None:
    read = read_https_answer(wire(HTTPS, rf"secret.test 60 HTTPS 1 a\010b\"<script>.test. ech={ECH}"), HTTPS, 443)
    assert read.endpoints == ()
    with pytest.raises(AnswerError, match="no host name"):
        read_https_answer(wire(HTTPS, r"secret.test 60 HTTPS 0 a\000b.test."), HTTPS, 443)


def test_records_of_other_names_in_the_answer_are_not_ours() -> None:
    read = read_https_answer(wire(HTTPS, f"other.test 60 HTTPS 1 . ech={ECH}"), HTTPS, 443)
    assert read.endpoints == ()


def test_names_compare_without_regard_to_case() -> None:
    read = read_https_answer(wire(HTTPS, f"SECRET.Test 60 HTTPS 1 . ech={ECH}"), HTTPS, 443)
    assert read.endpoints[0].target == "secret.test"


# ---------------------------------------------------------------- answers that are none


def test_an_answer_to_another_question_or_with_another_id_is_refused() -> None:
    good = wire(HTTPS, f"secret.test 60 HTTPS 1 . ech={ECH}")
    with pytest.raises(AnswerError, match="another id"):
        read_https_answer(b"\x12\x34" + good[2:], HTTPS, 443)
    for other in (Question("secret.test", "A"), Question("other.test", "HTTPS")):
        with pytest.raises(AnswerError, match="another question"):
            read_https_answer(wire(other), HTTPS, 443)
    with pytest.raises(AnswerError, match="no answer to a query"):
        read_https_answer(query(HTTPS), HTTPS, 443)
    bare = answer(HTTPS)
    bare.question.clear()
    with pytest.raises(AnswerError, match="another question"):
        read_https_answer(bare.to_wire(), HTTPS, 443)


def test_a_truncated_answer_is_refused_marked_or_cut() -> None:
    message = answer(HTTPS, f"secret.test 60 HTTPS 1 . ech={ECH}")
    whole = message.to_wire()
    message.flags |= dns.flags.TC
    with pytest.raises(AnswerError, match="truncated") as caught:
        read_https_answer(message.to_wire(), HTTPS, 443)
    assert caught.value.code == "resolver-truncated"
    for length in range(len(whole)):
        with pytest.raises(AnswerError):
            read_https_answer(whole[:length], HTTPS, 443)


@pytest.mark.parametrize(
    ("rcode", "code"),
    [
        (dns.rcode.SERVFAIL, "resolver-servfail"),
        (dns.rcode.REFUSED, "resolver-refused"),
        (dns.rcode.FORMERR, "resolver-formerr"),
        (dns.rcode.NOTIMP, "resolver-rcode"),
        (dns.rcode.BADVERS, "resolver-rcode"),
    ],
)
def test_a_resolver_that_fails_is_told_from_a_name_without_records(rcode: dns.rcode.Rcode, code: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read_https_answer(answer(HTTPS, rcode=rcode).to_wire(), HTTPS, 443)
    assert caught.value.code == code


def test_the_reason_a_resolver_adds_is_passed_on_without_control_characters() -> None:
    message = answer(HTTPS, rcode=dns.rcode.SERVFAIL)
    message.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS, "bad\x1b[31m key")])
    with pytest.raises(AnswerError, match=r"SERVFAIL \(dnssec bogus: bad\?\[31m key\)"):
        read_https_answer(message.to_wire(), HTTPS, 443)


def test_a_malformed_configuration_list_in_the_record_is_refused() -> None:
    good = wire(HTTPS, f"secret.test 60 HTTPS 1 . ech={ECH}")
    with pytest.raises(AnswerError, match="malformed"):
        read_https_answer(good.replace(LIST, b"\xff\xff" + LIST[2:]), HTTPS, 443)


# ---------------------------------------------------------------- addresses


def test_addresses_are_read_through_cnames() -> None:
    question = Question("secret.test", "A")
    read = read_address_answer(
        wire(question, "secret.test 90 CNAME a.test.", "a.test 30 A 192.0.2.1", "a.test 30 A 192.0.2.2"),
        question,
    )
    assert sorted(read.addresses) == ["192.0.2.1", "192.0.2.2"]
    assert (read.name, read.ttl) == ("a.test", 30)


def test_a_name_without_addresses_says_so() -> None:
    question = Question("secret.test", "AAAA")
    assert read_address_answer(wire(question), question).why == "secret.test has no AAAA record"
    missing = answer(question, rcode=dns.rcode.NXDOMAIN).to_wire()
    assert read_address_answer(missing, question).why == "secret.test does not exist"


def test_a_filtering_resolver_is_called_by_its_name() -> None:
    for kind, address in (("A", "0.0.0.0"), ("AAAA", "::")):
        question = Question("secret.test", kind)  # type: ignore[arg-type]
        read = read_address_answer(wire(question, f"secret.test 60 {kind} {address}"), question)
        assert read.addresses == ()
        assert "blocks secret.test" in (read.why or "")


def test_thousands_of_addresses_are_cut_to_what_can_be_tried() -> None:
    question = Question("secret.test", "A")
    message = answer(question)
    message.answer.append(
        dns.rrset.from_text_list(
            "secret.test.", 60, "IN", "A", [f"192.0.{i // 250}.{i % 250 + 1}" for i in range(2000)]
        )
    )
    assert len(read_address_answer(message.to_wire(max_size=65535), question).addresses) == 16


# ---------------------------------------------------------------- hostile bytes


def _read_all(data: bytes) -> None:
    for read in (
        lambda: read_https_answer(data, HTTPS, 443),
        lambda: read_address_answer(data, Question("secret.test", "A")),
    ):
        refusal = ""
        try:
            read()
        except AnswerError as error:
            refusal = error.message
        assert refusal.isprintable()


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_noise_is_an_error_and_never_a_crash(data: bytes) -> None:
    _read_all(data)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_behind_a_right_header_and_question_is_an_error_and_never_a_crash(data: bytes) -> None:
    head = answer(HTTPS).to_wire()
    question = head[12 : 12 + 13 + 4]
    _read_all(struct.pack("!HHHHHH", 0, 0x8180, 1, 3, 0, 0) + question + data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_byte_of_a_right_answer_may_change_without_a_crash(data: st.DataObject) -> None:
    good = bytearray(
        wire(
            HTTPS,
            "secret.test 60 CNAME pool.test.",
            "pool.test 60 HTTPS 0 real.test.",
            f"real.test 60 HTTPS 1 . mandatory=ech alpn=h2 port=1 ipv4hint=192.0.2.1 ech={ECH} ipv6hint=2001:db8::1",
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    _read_all(bytes(good))


@settings(deadline=None)
@given(
    parameters=st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=20)), max_size=6), priority=st.integers(0, 3)
)
def test_any_parameters_are_an_error_or_an_endpoint(parameters: list[tuple[int, bytes]], priority: int) -> None:
    data = struct.pack("!H", priority) + b"\0"
    for key, value in parameters:
        data += struct.pack("!HH", key, len(value)) + value
    head = bytearray(answer(HTTPS).to_wire())
    question = head[12 : 12 + 13 + 4]
    record = b"\xc0\x0c" + struct.pack("!HHIH", 65, 1, 60, len(data)) + data
    _read_all(struct.pack("!HHHHHH", 0, 0x8180, 1, 1, 0, 0) + bytes(question) + record)


def test_64_kib_of_noise_and_of_pointers_ends_quickly() -> None:
    _read_all(bytes(range(256)) * 256)
    _read_all(struct.pack("!HHHHHH", 0, 0x8180, 1, 65535, 0, 0) + b"\xc0\x0c" * 32000)


def test_a_name_that_points_around_costs_no_time() -> None:
    for pointers in (b"\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\xc0\xff"):
        _refused(struct.pack("!6H", 0, 0x8180, 1, 0, 0, 0) + pointers + b"\0\x41\0\1")
    # The longest chain of pointers that 14 bits can reach, and as many records as fit that begin at its end.
    chain = b"\0" + b"".join(struct.pack("!H", 0xC000 | (23 if i == 0 else 24 + 2 * (i - 1))) for i in range(8000))
    first = b"\0" + struct.pack("!2HIH", 999, 1, 0, len(chain)) + chain
    last = struct.pack("!H", 0xC000 | (24 + 2 * 7999)) + struct.pack("!2HIH", 1, 1, 0, 4) + bytes(4)
    count = (65535 - 12 - len(first)) // len(last)
    started = time.process_time()
    _refused(struct.pack("!6H", 0, 0x8180, 0, 1 + count, 0, 0) + first + last * count)
    assert time.process_time() - started < 5


def _refused(data: bytes) -> None:
    with pytest.raises(AnswerError, match="malformed") as caught:
        read_https_answer(data, HTTPS, 443)
    assert caught.value.code == "resolver-malformed"


@pytest.mark.parametrize(
    "parameters",
    [
        b"\0\3\0\2\0",
        b"\0\3\0",
        b"\0\3\0\2\0\1\0\3\0\2\0\1",
        b"\0\3\0\2\0\1\0\1\0\3\2h2",
        b"\0\3\0\1\1",
        b"\0\4\0\3abc",
        b"\0\4\0\0",
        b"\0\6\0\4abcd",
        b"\0\5\0\4abcd",
        b"\0\5\0\0",
        b"\0\1\0\0",
        b"\0\1\0\1\0",
        b"\0\1\0\2\5a",
        b"\0\2\0\0",
        b"\0\0\0\0",
        b"\0\0\0\1\0",
        b"\0\0\0\2\0\0",
        b"\0\0\0\2\0\5",
        b"\0\0\0\4\0\3\0\3\0\3\0\2\0\1",
    ],
)
def test_one_wrong_parameter_spoils_the_answer(parameters: bytes) -> None:
    data = b"\0\1\0" + parameters
    question = answer(HTTPS).to_wire()[12 : 12 + 13 + 4]
    record = b"\xc0\x0c" + struct.pack("!HHIH", 65, 1, 60, len(data)) + data
    message = struct.pack("!HHHHHH", 0, 0x8180, 1, 1, 0, 0) + question + record
    _refused(message)


def test_a_ttl_with_its_first_bit_set_is_0() -> None:
    question = Question("secret.test", "A")
    message = answer(question).to_wire()[12 : 12 + 13 + 4]
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0x80000001, 4) + bytes([192, 0, 2, 1])
    read = read_address_answer(struct.pack("!HHHHHH", 0, 0x8180, 1, 1, 0, 0) + message + record, question)
    assert (read.addresses, read.ttl) == (("192.0.2.1",), 0)
