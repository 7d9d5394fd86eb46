"""JA3 and JA4, against the examples their makers publish."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ech_workers.fingerprint import ClientHello


def vector(data: bytes, size: int = 2) -> bytes:
    return len(data).to_bytes(size, "big") + data


def numbers(*values: int) -> bytes:
    return b"".join(struct.pack("!H", value) for value in values)


def hello(
    ciphers: list[int], extensions: list[tuple[int, bytes]], *, version: int = 0x0303, record: int = 1 << 14
) -> bytes:
    body = struct.pack("!H", version) + bytes(32) + vector(b"", 1) + vector(numbers(*ciphers)) + b"\x01\0"
    body += vector(b"".join(struct.pack("!H", kind) + vector(data) for kind, data in extensions))
    message = b"\x01" + vector(body, 3)
    return b"".join(
        b"\x16\x03\x01" + vector(message[start : start + record]) for start in range(0, len(message), record)
    )


# The worked example of JA4's own description (technical_details/JA4.md): a Chrome hello.
CIPHERS = [
    0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC013, 0xC014, 0x009C, 0x009D, 0x002F,
    0x0035,
]  # fmt: skip
ALGORITHMS = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601]
ALPN = vector(vector(b"h2", 1) + vector(b"http/1.1", 1))
EXTENSIONS = [
    (0x001B, b"\x02\0\x02"),
    (0x0000, b""),
    (0x0033, b""),
    (0x0010, ALPN),
    (0x4469, b""),
    (0x0017, b""),
    (0x002D, b""),
    (0x000D, vector(numbers(*ALGORITHMS))),
    (0x0005, b""),
    (0x0023, b""),
    (0x0012, b""),
    (0x002B, vector(numbers(0x0304, 0x0303), 1)),
    (0xFF01, b""),
    (0x000B, b"\x01\0"),
    (0x000A, vector(numbers(0x001D, 0x0017, 0x0018))),
    (0x0015, b""),
]


def test_ja4_of_the_published_example() -> None:
    parsed = ClientHello.parse(hello(CIPHERS, EXTENSIONS))
    assert parsed.ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1"


def test_reserved_values_change_neither() -> None:
    plain = ClientHello.parse(hello(CIPHERS, EXTENSIONS))
    greased = ClientHello.parse(hello([0x0A0A, *CIPHERS], [(0x1A1A, b""), *EXTENSIONS, (0xFAFA, b"\0")]))
    assert (greased.ja3, greased.ja4) == (plain.ja3, plain.ja4)


def test_ja3_of_the_published_example() -> None:
    # From JA3's own description: the text, and its MD5.
    ciphers = [47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4]
    extensions = [(0, b""), (10, vector(numbers(23, 24, 25))), (11, b"\x01\0")]
    parsed = ClientHello.parse(hello(ciphers, extensions, version=769))
    assert parsed.ja3_text == "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0"
    assert parsed.ja3 == "ada70206e40642a3e4461f35503241d5"


def test_ja4_without_name_and_alpn_says_so() -> None:
    parsed = ClientHello.parse(hello([0x1301], [(43, vector(numbers(0x0304), 1))]))
    assert parsed.ja4.startswith("t13i010100_")
    assert ClientHello.parse(hello([0x1301], [])).ja4.endswith("_000000000000")


def test_a_hello_over_several_records_is_read_whole() -> None:
    whole = ClientHello.parse(hello(CIPHERS, EXTENSIONS))
    assert ClientHello.parse(hello(CIPHERS, EXTENSIONS, record=50)) == whole


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_an_error_and_never_a_crash(data: bytes) -> None:
    for bytes_ in (data, b"\x16\x03\x01" + vector(b"\x01" + vector(data, 3))):
        try:
            parsed = ClientHello.parse(bytes_)
        except ValueError:
            continue
        assert len(parsed.ja3) == 32


def test_every_cut_of_a_hello_is_an_error() -> None:
    whole = hello(CIPHERS, EXTENSIONS)
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            ClientHello.parse(whole[:length])
