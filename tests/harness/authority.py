"""Certificates of a private authority, as files."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    chain: Path
    key: Path


class Authority:
    """A private certificate authority whose files live in one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self._issued = 0
        self.path = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.path)

    def issue(self, *names: str, expired: bool = False) -> Certificate:
        """A certificate for names or addresses; an expired one ended yesterday."""
        now = datetime.datetime.now(datetime.UTC)
        leaf = self._authority.issue_cert(
            *names,
            not_before=now - datetime.timedelta(days=30) if expired else None,
            not_after=now - datetime.timedelta(days=1) if expired else None,
            key_type=trustme.KeyType.ECDSA,
        )
        self._issued += 1
        certificate = Certificate(self._folder / f"{self._issued}.pem", self._folder / f"{self._issued}.key")
        for number, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(certificate.chain, append=number > 0)
        leaf.private_key_pem.write_to_path(certificate.key)
        return certificate
