"""What is known about servers, in memory and on disk: ECH configurations, addresses, and who chooses h2.

An entry that has outlived its TTL is still handed out, marked as stale: the caller uses it and looks for a new one
meanwhile. That is safe with ECH, because a server that no longer has the key rejects it and hands over its present
configurations, authenticated (RFC 9849 section 6.1.6), which ``learn`` keeps.

The file is JSON, readable by its owner alone, replaced as a whole, and shared by every process of the user: each change
is made to what is on disk at that moment, under a lock. A file that cannot be read is reported once and made anew; one
that a newer version of the program wrote is left alone; when the disk does not work at all, memory does.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from ech_workers import _native, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ech_workers.doh import HttpsAnswer

__all__ = ["Addresses", "Alternative", "Configuration", "EchStore", "list_problem", "public_name", "without_first"]

Source = Literal["dns", "retry", "option", "bootstrap"]
_Identity = tuple[int, int, int]

FILE_NAME = "ech.json"

VERSION = 1
"""Of the file. A file without one is as good as the first."""

RETRY_TTL = 3600.0
"""Retry configurations come without a TTL; an hour is what large providers keep a key for."""

H2_TTL = 30 * 86400.0
"""After this a server is asked again whether it still chooses h2."""

FILE_LIMIT = 8 << 20
ENTRY_LIMIT = 256
"""Entries of each kind; the oldest make room."""

OTHERS_LIMIT = 7
"""As many further endpoints of a server are tried before the first one's turn comes again."""

# ECHConfigList has a 16-bit length (RFC 9849 section 4).
_LIST_LIMIT = 65537

# A process that holds the lock for longer is stopped or lost: the file stays whole without the lock, because it is
# replaced in one step; only a change made in that moment may be lost.
_LOCK_TIMEOUT = 5.0

_log = logging.getLogger("ech_workers.ech")


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """Another endpoint of the same server, from a further HTTPS record (RFC 9460 section 2.4.1)."""

    configs: bytes
    target: str | None
    port: int | None
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_endpoint(self.configs, self.port)
        _check(self.hints, 0.0)


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The ECH configurations for one server, and what came with them."""

    configs: bytes
    """An ECHConfigList."""
    source: Source
    origin: str
    """The name whose HTTPS record, or whose server, they came from."""
    fetched_at: float
    """Wall clock, seconds since the epoch."""
    ttl: float
    target: str | None = None
    """The name whose addresses to use; None is the server's own."""
    port: int | None = None
    hints: tuple[str, ...] = ()
    others: tuple[Alternative, ...] = ()
    """What to try when this endpoint fails, in the order of priority."""
    rejected: bytes | None = None
    """With source "retry": the published configurations that the server did not accept."""

    def __post_init__(self) -> None:
        _check_endpoint(self.configs, self.port)
        _check(self.hints, self.ttl)

    @classmethod
    def of_record(
        cls, answer: HttpsAnswer, origin: str, *, own: bool, now: float, is_usable: Callable[[bytes], bool]
    ) -> Configuration:
        """What an answer says, whose first endpoint with ECH was found to be usable.

        own: the record is the server's; of another name's only the configuration is for it.
        """
        endpoints = [endpoint for endpoint in answer.endpoints if endpoint.ech]
        if not own:
            return cls(
                configs=endpoints[0].ech or b"", source="dns", origin=origin, fetched_at=now, ttl=float(answer.ttl)
            )
        first, *others = [
            Alternative(configs=endpoint.ech, target=endpoint.target, port=endpoint.port, hints=endpoint.hints)
            for endpoint in endpoints
            if endpoint.ech and (endpoint is endpoints[0] or is_usable(endpoint.ech))
        ]
        return cls(
            configs=first.configs,
            source="dns",
            origin=origin,
            fetched_at=now,
            ttl=float(answer.ttl),
            target=first.target,
            port=first.port,
            hints=first.hints,
            others=tuple(others[:OTHERS_LIMIT]),
        )

    @property
    def expires_at(self) -> float:
        return self.fetched_at + self.ttl

    def is_stale(self, now: float) -> bool:
        return _is_stale(self.fetched_at, self.ttl, now)

    def turned(self, times: int) -> Configuration:
        """The same with another endpoint in front, so many places further; the ones before it come last."""
        times %= len(self.others) + 1
        if times == 0:
            return self
        own = Alternative(configs=self.configs, target=self.target, port=self.port, hints=self.hints)
        first = self.others[times - 1]
        others = (*self.others[times:], own, *self.others[: times - 1])
        return msgspec.structs.replace(
            self, configs=first.configs, target=first.target, port=first.port, hints=first.hints, others=others
        )


class Addresses(msgspec.Struct, frozen=True):
    """The addresses of a name, of both families. ms: how long 64 KiB took by each, as far as that is known. worked_at: when each
    last worked, of those that are kept for that."""

    addresses: tuple[str, ...]
    fetched_at: float
    ttl: float
    ms: tuple[float | None, ...] = ()
    worked_at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check(self.addresses, self.ttl)

    def is_stale(self, now: float) -> bool:
        return _is_stale(self.fetched_at, self.ttl, now)


def list_problem(configs: bytes) -> str | None:
    """What is wrong with an ECHConfigList, or None."""
    try:
        entries = _native.parse_ech_config_list(configs)
    except ValueError as error:
        return str(error)
    if not any(entry.public_name for entry in entries):
        return "it has no configuration of a version this client knows"
    return None


def without_first(configs: bytes) -> bytes | None:
    """An ECHConfigList without its first usable entry; None if no usable one is left."""
    at, rest = 2, []
    is_dropped = False
    while at + 4 <= len(configs):
        # ECHConfig: a 16-bit version, and contents with a 16-bit length (RFC 9849 section 4).
        end = at + 4 + int.from_bytes(configs[at + 2 : at + 4], "big")
        entry = configs[at:end]
        if not is_dropped and list_problem(len(entry).to_bytes(2, "big") + entry) is None:
            is_dropped = True
        else:
            rest.append(entry)
        at = end
    joined = b"".join(rest)
    shorter = len(joined).to_bytes(2, "big") + joined
    return shorter if is_dropped and rest and list_problem(shorter) is None else None


def public_name(configs: bytes) -> str | None:
    """The public name of the first entry of an ECHConfigList that has one."""
    try:
        entries = _native.parse_ech_config_list(configs)
    except ValueError:
        return None
    return next((entry.public_name for entry in entries if entry.public_name), None)


class EchStore:
    """The store of one process; any thread may use it.

    Servers are named by ``host:port``, addresses by the name they belong to.
    """

    def __init__(self, directory: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """directory: where the file is; None keeps everything in memory. clock: the wall clock."""
        self._path = directory / FILE_NAME if directory is not None else None
        self.clock = clock
        self._lock = waiting.lock()
        self._entries = _Entries()
        self._seen: _Identity | None = None
        self._is_newer = False
        """The file is of a newer version: this program neither reads nor writes it."""
        self._reported: set[tuple[str, _Identity | None]] = set()

    def configuration(self, server: str) -> Configuration | None:
        """What is known for a server, stale or not."""
        with self._lock:
            self._refresh()
            return self._entries.configurations.get(server)

    def store(self, server: str, found: Configuration) -> Configuration:
        """Keeps what a look-up found, and returns what is to be used.

        That is not the same when the server has rejected the published configurations and handed over others: those
        stay until something new is published.
        """

        def change(entries: _Entries) -> None:
            known = entries.configurations.get(server)
            if known is not None and known.source == "retry" and known.rejected == found.configs:
                kept = msgspec.structs.replace(known, fetched_at=found.fetched_at, ttl=found.ttl)
                entries.configurations[server] = kept
            else:
                entries.configurations[server] = found

        with self._lock:
            self._change(change)
            return self._entries.configurations[server]

    def learn(self, server: str, configs: bytes, *, used: Configuration) -> Configuration:
        """Keeps authenticated retry configurations of a server that rejected those in ``used``."""
        learned = msgspec.structs.replace(
            used,
            configs=configs,
            source="retry",
            fetched_at=self.clock(),
            ttl=RETRY_TTL,
            rejected=used.rejected if used.source == "retry" else used.configs,
        )
        with self._lock:
            self._change(lambda entries: entries.configurations.__setitem__(server, learned))
            return learned

    def forget(self, server: str) -> None:
        """Drops the configuration of a server."""
        with self._lock:
            if self.configuration(server) is not None:
                self._change(lambda entries: entries.configurations.pop(server, None))

    def addresses(self, name: str) -> Addresses | None:
        """The addresses last found for a name, stale or not."""
        with self._lock:
            self._refresh()
            return self._entries.addresses.get(name)

    def store_addresses(self, name: str, found: Addresses) -> None:
        """Keeps the addresses of a name."""
        with self._lock:
            self._change(lambda entries: entries.addresses.__setitem__(name, found))

    def is_h2_known(self, server: str) -> bool:
        """True if the server was seen to choose h2 within the last 30 days."""
        with self._lock:
            self._refresh()
            seen = self._entries.h2.get(server)
            return seen is not None and abs(self.clock() - seen) < H2_TTL

    def remember_h2(self, server: str) -> None:
        """Keeps that a server chose h2."""
        with self._lock:
            self._change(lambda entries: entries.h2.__setitem__(server, self.clock()))

    def _change(self, change: Callable[[_Entries], object]) -> None:
        if self._path is None:
            change(self._entries)
            self._entries.bound()
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _file_lock(self._path.with_suffix(".lock")):
                self._refresh()
                change(self._entries)
                self._entries.bound()
                if not self._is_newer:
                    self._write(self._path)
        except OSError as error:
            # Asked again what memory has: the change may not have got that far.
            change(self._entries)
            self._entries.bound()
            self._report(f"cannot keep {self._path}: {_reason(error)}; what is learned lasts until this program ends")

    def _refresh(self) -> None:
        """Takes over what is on disk, if that has changed."""
        if self._path is None:
            return
        try:
            status = self._path.stat()
            seen = _identity(status)
            if seen == self._seen:
                return
            self._seen = seen
            with self._path.open("rb") as file:
                data = file.read(FILE_LIMIT + 1)
        except FileNotFoundError:
            self._seen = None
            self._is_newer = False
            return
        except OSError as error:
            self._report(f"cannot read {self._path}: {_reason(error)}")
            return
        try:
            if len(data) > FILE_LIMIT:
                raise ValueError(f"it has more than {FILE_LIMIT >> 20} MiB")
            self._is_newer = msgspec.json.decode(data, type=_Head).version > VERSION
            if self._is_newer:
                self._report(
                    f"{self._path} was written by a newer version of this program and is left alone: what is learned lasts"
                    " until this program ends",
                    level=logging.INFO,
                )
                return
            self._entries = msgspec.json.decode(data, type=_Entries)
        except (ValueError, RecursionError) as error:
            # Not here, where no lock is held, but with the next change.
            self._is_newer = False
            self._report(f"{self._path} is corrupted and will be made anew: {_visible(str(error))}", seen)
            return
        if status.st_mode & 0o077:
            with contextlib.suppress(OSError):
                self._path.chmod(0o600)

    def _write(self, path: Path) -> None:
        fresh = path.with_name(f"{path.name}.{os.getpid()}-{id(self):x}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self._entries), indent=1))
                file.flush()
                # Taken before the name is given: afterwards it may be another process's file.
                seen = _identity(os.fstat(descriptor))
            # Not synced: after a power cut an empty file is found at worst, and made anew.
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        self._seen = seen

    def _report(self, message: str, seen: _Identity | None = None, *, level: int = logging.WARNING) -> None:
        """Says it once; for a file, once for each state it was found in."""
        if (message, seen) not in self._reported:
            self._reported.add((message, seen))
            _log.log(level, "%s", message)


class _Head(msgspec.Struct):
    """What every version of the file has."""

    version: int = 1


class _Entries(msgspec.Struct):
    """The file."""

    version: int = VERSION
    configurations: dict[str, Configuration] = {}
    addresses: dict[str, Addresses] = {}
    h2: dict[str, float] = {}

    def bound(self) -> None:
        for entries in (self.configurations, self.addresses):
            while len(entries) > ENTRY_LIMIT:
                del entries[min(entries, key=lambda key: entries[key].fetched_at)]
        while len(self.h2) > ENTRY_LIMIT:
            del self.h2[min(self.h2, key=lambda key: self.h2[key])]


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Keeps other processes from changing the file; without the lock, after a while, if they do not let go."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() >= deadline:
                    break
                time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_mtime_ns, status.st_ino, status.st_size


def _is_stale(fetched_at: float, ttl: float, now: float) -> bool:
    # An entry from the future was made before the clock was set back: its age is not known.
    return not fetched_at <= now < fetched_at + ttl


def _check_endpoint(configs: bytes, port: int | None) -> None:
    if not 0 < len(configs) <= _LIST_LIMIT:
        raise ValueError(f"an ECHConfigList of {len(configs)} bytes")
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port {port}")


def _check(addresses: Sequence[str], ttl: float) -> None:
    for address in addresses:
        ipaddress.ip_address(address)
    if not 0 <= ttl < 1e9:
        raise ValueError(f"a TTL of {ttl} seconds")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _visible(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])
