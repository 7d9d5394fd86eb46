"""Session ticket keys in a directory that several servers share, so that a client resumes at any of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ech_workers._logging import ABOUT_CONFIG
from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KEY_LENGTH", "TicketKeyDirectory"]

log = logging.getLogger("ech_workers.server")

# 16 bytes of name, 32 for HMAC-SHA256, 32 for AES-256: nginx's ssl_session_ticket_key.
KEY_LENGTH = 80

_MAX_KEYS = 16


class TicketKeyDirectory:
    """The ticket keys in a directory: every ``*.key`` file, of 80 random bytes.

    The newest file, by its time of modification, seals new tickets; the older ones only open those that clients have. The 16
    newest count. A file that cannot be used is said once and left out.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when there is no key to begin with."""
        self.path = path
        self.keys: tuple[bytes, ...] = ()
        self.names: tuple[str, ...] = ()
        self._told: frozenset[str] = frozenset()
        try:
            self._read()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", option="--ticket-keys") from None
        if not self.keys:
            raise ConfigError(
                f"there is no ticket key in {path}",
                option="--ticket-keys",
                advice=f"make one with `openssl rand -out {path}/1.key {KEY_LENGTH}`",
            )

    def refresh(self) -> bool:
        """Looks for changes; True when ``keys`` changed. Without a usable key, or while the directory cannot be read, those in use
        stay."""
        before = self.keys
        try:
            self._read()
        except OSError as error:
            self._tell({f"the ticket keys in use stay: {self.path} cannot be read: {error.strerror}"})
        if not self.keys:
            self.keys = before
        return self.keys != before

    def _read(self) -> None:
        found: list[tuple[int, str, bytes]] = []
        wrong = set()
        for file in sorted(self.path.iterdir()):
            if file.suffix != ".key":
                continue
            try:
                with file.open("rb") as stream:
                    modified = file.stat().st_mtime_ns
                    content = stream.read(KEY_LENGTH + 1)
            except OSError as error:
                wrong.add(f"{file} cannot be read: {error.strerror}; it is tried again")
                continue
            if len(content) != KEY_LENGTH:
                wrong.add(f"{file} is left out: a ticket key has {KEY_LENGTH} bytes")
            else:
                found.append((modified, file.name, content))
        found.sort(key=lambda key: (-key[0], key[1]))
        self.keys = tuple(content for _, _, content in found[:_MAX_KEYS])
        self.names = tuple(name for _, name, _ in found[:_MAX_KEYS])
        if not found:
            wrong.add(f"there is no ticket key in {self.path}: those in use stay")
        self._tell(wrong)

    def _tell(self, problems: set[str]) -> None:
        for problem in sorted(problems - self._told):
            log.warning("%s", problem, extra=ABOUT_CONFIG)
        self._told = frozenset(problems)
