"""The server's certificates: pairs of files, what is wrong with one, and when it is time for another."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from ech_workers import files
from ech_workers.errors import ConfigError

__all__ = ["CertificatePair", "validity_problem"]

log = logging.getLogger("ech_workers.server")

EXPIRES_SOON = 14 * 86400
"""Seconds before the end at which a certificate begins to be reported."""


class CertificatePair(msgspec.Struct, frozen=True):
    """A chain and its private key in PEM, and the files that they came from (None: from no file)."""

    chain: bytes
    key: bytes
    chain_file: Path | None = None
    key_file: Path | None = None

    def __repr__(self) -> str:
        return f"CertificatePair({self.chain_file}, {self.key_file})"  # no private key in logs

    @property
    def name(self) -> str:
        return "the certificate" if self.chain_file is None else str(self.chain_file)

    @classmethod
    def read(cls, chain_file: Path, key_file: Path) -> CertificatePair:
        """Reads a pair and tries it. Raises ConfigError that names the file, and the line where there is one."""
        chain, key = files.read(chain_file, "--cert"), files.read(key_file, "--key")
        if b"-----BEGIN CERTIFICATE-----" not in chain:
            raise ConfigError(f"{chain_file} has no certificate in it", option="--cert", advice="give a PEM file")
        if b"PRIVATE KEY-----" not in key:
            raise ConfigError(f"{key_file} has no private key in it", option="--key", advice="give a PEM file")
        if b"ENCRYPTED" in key:
            raise ConfigError(
                f"{key_file} is encrypted",
                option="--key",
                advice="decrypt it: openssl pkey -in FILE -out NEW_FILE",
            )
        files.check_pem(chain, chain_file, "--cert")
        files.check_pem(key, key_file, "--key")
        pair = cls(chain, key, chain_file, key_file)
        from ech_workers._native import inspect_certificate

        try:
            inspect_certificate(chain, key)
        except ValueError as error:
            raise ConfigError(f"{chain_file}, {key_file}: {error}", option="--cert") from None
        return pair

    def validity(self) -> tuple[int, int]:
        """From when to when it is valid, in seconds since the epoch."""
        from ech_workers._native import inspect_certificate

        _, not_before, not_after = inspect_certificate(self.chain, self.key)
        return not_before, not_after


def validity_problem(pair: CertificatePair, now: float | None = None) -> str | None:
    """What is to be said of a certificate that is not valid, or will not be for long; now: seconds since the epoch."""
    now = time.time() if now is None else now
    not_before, not_after = pair.validity()
    if now < not_before:
        return f"{pair.name} is not valid yet: from {_date(not_before)} on; check this machine's clock"
    if now >= not_after:
        return f"{pair.name} expired on {_date(not_after)}: clients refuse it; renew it"
    if not_after - now < EXPIRES_SOON:
        days = int((not_after - now) // 86400)
        left = "today" if days == 0 else "in 1 day" if days == 1 else f"in {days} days"
        return f"{pair.name} expires {left}, on {_date(not_after)}; renew it"
    return None


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
