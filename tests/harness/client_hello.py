"""A ClientHello (RFC 8446 section 4.1.2), taken apart far enough to say in what two of them differ."""

from dataclasses import dataclass
from typing import Self

RECORD_HEADER = 5
RANDOM = 32
SERVER_NAME, SESSION_TICKET, PRE_SHARED_KEY, KEY_SHARE, ENCRYPTED_CLIENT_HELLO = 0, 35, 41, 51, 0xFE0D
X25519, X25519MLKEM768 = 0x001D, 0x11EC


@dataclass(frozen=True)
class Hello:
    """What is in a hello, but for what has to be new in each one."""

    record_version: int
    version: int
    session_id: int
    """Its length."""
    cipher_suites: tuple[int, ...]
    compression_methods: bytes
    extensions: tuple[tuple[int, object], ...]
    """In their order: number and content, or the part of the content that does not change."""

    @classmethod
    def parse(cls, record: bytes) -> Self:
        assert record[0] == 22, record[:5]
        assert len(record) == RECORD_HEADER + int.from_bytes(record[3:5], "big")
        reader = Reader(record[RECORD_HEADER:])
        assert reader.number(1) == 1
        reader = Reader(reader.vector(3))
        version = reader.number(2)
        reader.take(RANDOM)
        session_id = len(reader.vector(1))
        suites = Reader(reader.vector(2)).numbers()
        methods = reader.vector(1)
        extensions = []
        listing = Reader(reader.vector(2))
        while listing.left:
            number = listing.number(2)
            extensions.append((number, _lasting(number, listing.vector(2))))
        assert not reader.left
        return cls(int.from_bytes(record[1:3], "big"), version, session_id, suites, methods, tuple(extensions))

    @property
    def shares(self) -> tuple[tuple[int, int], ...]:
        """The groups of key_share, and the lengths of their keys."""
        shares, _ = self._key_share
        return shares

    @property
    def one_x25519_key(self) -> bool:
        """Whether the shares of X25519 and X25519MLKEM768 hold the same key."""
        _, one = self._key_share
        return one

    @property
    def _key_share(self) -> tuple[tuple[tuple[int, int], ...], bool]:
        found = dict(self.extensions)[KEY_SHARE]
        assert isinstance(found, tuple)
        return found

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.extensions]


def client_hellos(sent: bytes) -> list[bytes]:
    """The records of a connection's ClientHellos, by what the client sent: two when it was asked for another."""
    found, reader = [], Reader(sent)
    while len(reader.left) > RECORD_HEADER:
        header = reader.take(RECORD_HEADER)
        content = reader.take(int.from_bytes(header[3:], "big"))
        if header[0] == 22 and content[0] == 1:
            found.append(header + content)
    return found


class Reader:
    """The presentation language of TLS (RFC 8446 section 3)."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def take(self, count: int) -> bytes:
        assert len(self.left) >= count
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def numbers(self) -> tuple[int, ...]:
        found = []
        while self.left:
            found.append(self.number(2))
        return tuple(found)


def _lasting(number: int, content: bytes) -> object:
    reader = Reader(content)
    match number:
        case 0:  # server_name: another in each test
            return "a name"
        case 51:  # key_share: groups, the lengths of the keys, and whether two of them are one
            shares = Reader(reader.vector(2))
            found = []
            while shares.left:
                found.append((shares.number(2), shares.vector(2)))
            keys = dict(found)
            # The hybrid's X25519 key is behind that of ML-KEM.
            one = X25519 in keys and keys.get(X25519MLKEM768, b"")[-32:] == keys[X25519]
            return tuple((group, len(key)) for group, key in found), one
        case 41:  # pre_shared_key: how many tickets and binders, and the binders' lengths
            identities, lengths = Reader(reader.vector(2)), []
            while identities.left:
                identities.vector(2)
                identities.take(4)
                lengths.append("ticket")
            binders, sizes = Reader(reader.vector(2)), []
            while binders.left:
                sizes.append(len(binders.vector(1)))
            return tuple(lengths), tuple(sizes)
        case 0xFE0D:  # encrypted_client_hello (RFC 9849 section 5): type, KDF, AEAD, length of the key
            kind, kdf, aead = reader.number(1), reader.number(2), reader.number(2)
            reader.number(1)
            return kind, kdf, aead, len(reader.vector(2))
        case _:
            return content.hex()
