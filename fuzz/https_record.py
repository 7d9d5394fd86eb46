"""Fuzzes the reading of DNS answers, HTTPS records above all: python fuzz/https_record.py CORPUS [libFuzzer's options]

atheris steers libFuzzer by the coverage of dnspython and of ech_workers.doh. An answer is read, or refused with AnswerError in one
printable line; anything else is a finding.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dns", "ech_workers.doh"]):
    import dns.message
    import dns.rrset

    from ech_workers import doh

NAME = "secret.test"
HTTPS = doh.Question(NAME, "HTTPS")
ADDRESS = doh.Question(NAME, "A")


def seeds() -> list[bytes]:
    """Right answers, so that the fuzzer need not invent DNS."""
    made = []
    for question, *records in (
        (
            HTTPS,
            f"{NAME} 60 CNAME pool.test.",
            "pool.test 60 HTTPS 0 real.test.",
            "real.test 60 HTTPS 1 . alpn=h2 port=1",
        ),
        (HTTPS, f"{NAME} 60 HTTPS 1 . mandatory=alpn alpn=h2 ipv4hint=192.0.2.1 ech=AAT+DQAA ipv6hint=2001:db8::1"),
        (ADDRESS, f"{NAME} 60 A 192.0.2.1"),
    ):
        message = dns.message.make_response(dns.message.from_wire(doh.query(question)))
        for record in records:
            owner, ttl, kind, value = record.split(maxsplit=3)
            message.answer.append(dns.rrset.from_text(f"{owner}.", int(ttl), "IN", kind, value))
        made.append(message.to_wire())
    return made


def read(data: bytes) -> None:
    for attempt in (lambda: doh.read_https_answer(data, HTTPS, 443), lambda: doh.read_address_answer(data, ADDRESS)):
        try:
            attempt()
        except doh.AnswerError as error:
            if not error.message.isprintable():
                raise ValueError(f"an unprintable refusal: {error.message!r}") from error


if __name__ == "__main__":
    for number, seed in enumerate(seeds()):
        (Path(sys.argv[1]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
