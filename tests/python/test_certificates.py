"""The server's certificates: what is wrong with a pair of files, and when one is about to end."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from ech_workers import _native
from ech_workers.certificates import CertificatePair, validity_problem
from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def authority() -> _native.CertificateAuthority:
    return _native.CertificateAuthority()


def read(folder: Path, chain: bytes, key: bytes) -> CertificatePair:
    (folder / "tunnel.pem").write_bytes(chain)
    (folder / "tunnel.key").write_bytes(key)
    return CertificatePair.read(folder / "tunnel.pem", folder / "tunnel.key")


def refused(folder: Path, chain: bytes, key: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, chain, key)
    return caught.value.line().replace(f"{folder}/", "")


def test_pairs_are_read_as_people_have_them(tmp_path: Path, authority: _native.CertificateAuthority) -> None:
    chain, key = authority.issue(["tunnel.test"])
    read(tmp_path, chain, key)
    read(tmp_path, chain.replace(b"\n", b"\r\n"), key.replace(b"\n", b"\r\n"))
    read(tmp_path, b"Bag Attributes\n    friendlyName: x\n" + chain + authority.pem, key)
    read(tmp_path, chain + key, chain + key)


def test_a_refusal_names_the_file(tmp_path: Path, authority: _native.CertificateAuthority) -> None:
    chain, key = authority.issue(["tunnel.test"])
    other = authority.issue(["other.test"])[1]
    assert "--cert: tunnel.pem has no certificate in it" in refused(tmp_path, key, key)
    assert "--key: tunnel.key has no private key in it" in refused(tmp_path, chain, chain)
    assert "--cert: tunnel.pem, tunnel.key: the private key does not belong" in refused(tmp_path, chain, other)
    assert "the private key belongs to certificate 2 of the chain: the server's own comes first" in refused(
        tmp_path, authority.pem + chain, key
    )
    assert "--key: tunnel.key, line 2: this is no base64" in refused(tmp_path, chain, key.replace(b"\n", b"\n!", 1))
    assert "--cert: tunnel.pem: the CERTIFICATE of line 12 has no end" in refused(tmp_path, chain[:-10], key)


def test_an_encrypted_key_says_how_to_decrypt_it(tmp_path: Path, authority: _native.CertificateAuthority) -> None:
    chain, key = authority.issue(["tunnel.test"])
    encrypted = subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:x"], input=key, capture_output=True, check=True
    ).stdout
    assert "--key: tunnel.key is encrypted; decrypt it: openssl pkey" in refused(tmp_path, chain, encrypted)


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (-3600, 30 * 86400, None),
        (-3600, 13 * 86400 + 60, "expires in 13 days, on 20"),
        (-3600, 86400 + 60, "expires in 1 day, on 20"),
        (-3600, 60, "expires today, on 20"),
        (-3600, -60, "expired on 20"),
        (3600, 86400, "is not valid yet: from 20"),
    ],
)
def test_the_end_of_a_certificate_is_said_in_time(
    authority: _native.CertificateAuthority, tmp_path: Path, begins: int, ends: int, said: str | None
) -> None:
    pair = read(tmp_path, *authority.issue(["tunnel.test"], not_before=begins, not_after=ends))
    problem = validity_problem(pair)
    if said is None:
        assert problem is None
    else:
        assert problem is not None
        assert problem.startswith(f"{tmp_path / 'tunnel.pem'} {said}")
