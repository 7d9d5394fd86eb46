"""ECH keys made without the code under test: RFC 9849 configurations, RFC 9934 files."""

import base64
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ECH_VERSION = 0xFE0D  # RFC 9849 section 4
DHKEM_X25519_HKDF_SHA256 = 0x0020  # RFC 9180 section 7.1
HKDF_SHA256 = 0x0001  # section 7.2
AES_128_GCM = 0x0001  # section 7.3


@dataclass(frozen=True)
class EchKey:
    """One server key and its configuration."""

    config_list: bytes
    path: Path

    @property
    def base64(self) -> str:
        return base64.b64encode(self.config_list).decode()


def ech_key(folder: Path, public_name: str, config_id: int, maximum_name_length: int = 64) -> EchKey:
    """A new key, written to folder/ID.pem."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    contents = (
        bytes([config_id])
        + _u16(DHKEM_X25519_HKDF_SHA256)
        + _vector(public)
        + _vector(_u16(HKDF_SHA256) + _u16(AES_128_GCM))
        + bytes([maximum_name_length, len(public_name)])
        + public_name.encode("ascii")
        + _vector(b"")
    )
    config_list = _vector(_u16(ECH_VERSION) + _vector(contents))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config_id}.pem"
    path.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + _pem("ECHCONFIG", config_list)
    )
    path.chmod(0o600)
    return EchKey(config_list, path)


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _vector(content: bytes) -> bytes:
    return _u16(len(content)) + content


def _pem(label: str, content: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(content).decode()}-----END {label}-----\n".encode()
