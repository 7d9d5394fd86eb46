"""The server's ECH keys: every usable file of a directory, and which of them clients are told of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from ech_workers import _native
from ech_workers._logging import ABOUT_CONFIG

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KeyDirectory", "KeyFile", "Stamp"]

log = logging.getLogger("ech_workers.server")

# A key file holds one key and its configuration, a few hundred bytes.
KEY_FILE_LIMIT = 65536

Stamp = tuple[int, int, int, int]
"""What changes when a file does."""


class KeyFile(NamedTuple):
    """One usable RFC 9934 file."""

    path: Path
    pem: bytes
    config_ids: tuple[int, ...]
    public_names: tuple[str, ...]
    modified: int
    retry: bool = True
    """Handed out as a retry configuration; otherwise the key only decrypts."""


class KeyDirectory:
    """The ECH keys in a directory: every ``*.pem`` file that holds a private key and its configuration.

    The newest file (by its time of modification) of each public name is handed out as the retry configuration of that
    name; the older ones only decrypt, for clients that still remember them. RFC 9934 files have no mark for this, so
    the rule goes by what every maker's file has. A file that cannot be used is said once and left out; one that could not
    be read is tried again at every look, until it can be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: tuple[KeyFile, ...] = ()
        self._seen: dict[str, tuple[Stamp, KeyFile | None]] = {}
        """What each file was found to be, None: of no use."""
        self._unread: dict[str, str] = {}
        """Files that could not be read the last time, and why."""
        self._clashes: dict[Path, Path] = {}

    def refresh(self) -> bool:
        """Looks for changes; True when ``keys`` changed. Raises OSError when the directory cannot be read."""
        stamps = self._look()
        if not self._unread and stamps == {name: stamp for name, (stamp, _) in self._seen.items()}:
            return False
        seen: dict[str, tuple[Stamp, KeyFile | None]] = {}
        unread: dict[str, str] = {}
        for name, stamp in stamps.items():
            before = self._seen.get(name)
            if before is not None and before[0] == stamp and name not in self._unread:
                seen[name] = before
                continue
            try:
                seen[name] = stamp, _read_key(self.path / name)
            except OSError as error:
                # Often not for good: a key before its chown, a process that is out of descriptors.
                why = error.strerror or str(error)
                if self._unread.get(name) != why:
                    log.warning("%s cannot be read: %s; it is tried again", self.path / name, why, extra=ABOUT_CONFIG)
                unread[name] = why
                if before is not None:
                    seen[name] = before
            except ValueError as error:
                log.warning("%s is left out: %s", self.path / name, error, extra=ABOUT_CONFIG)
                seen[name] = stamp, None
        self._seen, self._unread = seen, unread
        found = [key for _, key in seen.values() if key is not None]
        found.sort(key=lambda key: (-key.modified, key.path.name))
        keys: list[KeyFile] = []
        owners: dict[int, KeyFile] = {}
        names: set[str] = set()
        clashes: dict[Path, Path] = {}
        for key in found:
            other = next((owners[number] for number in key.config_ids if number in owners), None)
            if other is not None:
                # The config_id is how the server finds the key (RFC 9849 section 7.1): two of a kind cannot be told apart.
                if self._clashes.get(key.path) != other.path:
                    log.warning(
                        "%s is left out: its config id is that of %s", key.path, other.path.name, extra=ABOUT_CONFIG
                    )
                clashes[key.path] = other.path
                continue
            owners.update(dict.fromkeys(key.config_ids, key))
            keys.append(key._replace(retry=not names.issuperset(key.public_names)))
            names.update(key.public_names)
        self._clashes = clashes
        changed = [(key.pem, key.retry) for key in keys] != [(key.pem, key.retry) for key in self.keys]
        self.keys = tuple(keys)
        return changed

    def _look(self) -> dict[str, Stamp]:
        stamps = {}
        for file in self.path.glob("*.pem"):
            try:
                status = file.stat()
            except OSError:
                continue  # gone in between, or a dangling link
            stamps[file.name] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        return dict(sorted(stamps.items()))


def _read_key(file: Path) -> KeyFile:
    """Raises OSError, or ValueError for a file that is no key."""
    with file.open("rb") as stream:
        modified = file.stat().st_mtime_ns
        pem = stream.read(KEY_FILE_LIMIT + 1)
    if len(pem) > KEY_FILE_LIMIT:
        raise ValueError(f"it is larger than {KEY_FILE_LIMIT >> 10} KiB")
    has_key, configs = _native.read_ech_pem(pem)
    if not has_key:
        raise ValueError("it has no private key")
    entries = _native.parse_ech_config_list(configs)
    return KeyFile(
        file,
        pem,
        tuple(entry.config_id for entry in entries if entry.config_id is not None),
        tuple(dict.fromkeys(entry.public_name for entry in entries if entry.public_name is not None)),
        modified,
    )
