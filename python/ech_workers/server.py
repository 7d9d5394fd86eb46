"""The server's orchestration: the native server, its ECH keys kept in step with a directory, log lines, the drain."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from ech_workers import _native
from ech_workers._logging import ABOUT_CONFIG, about, forward
from ech_workers.arguments import ArgumentError
from ech_workers.certificates import CertificatePair, validity_problem
from ech_workers.config import authority
from ech_workers.credentials import short_tokens
from ech_workers.errors import CertificateError, ConfigError, EngineClosed, ListenError
from ech_workers.keys import KeyDirectory, KeyFile, Stamp
from ech_workers.options.client import LogTuning
from ech_workers.served import SESSIONS_MAX, ServedSession, TokenStatus
from ech_workers.status.port import ServerPort
from ech_workers.ticket_keys import TicketKeyDirectory

if TYPE_CHECKING:
    from types import TracebackType

    from ech_workers.config import ListenAddress, ServerConfig

__all__ = ["KeyDirectory", "KeyFile", "ServedSession", "TokenStatus", "TunnelServer"]

log = logging.getLogger("ech_workers.server")

# How often the key directory is looked at; a look is one scandir.
WATCH_INTERVAL = 1.0

# How often the counters go to the log, if they changed.
STATUS_INTERVAL = 3600.0

# How often certificates are looked at for their end.
VALIDITY_INTERVAL = 86400.0


class TunnelServer:
    """A running server: ``with TunnelServer(ServerConfig.build(...)) as server``, or ``close`` in the end."""

    def __init__(self, config: ServerConfig) -> None:
        """Opens the port and begins to serve. Raises ConfigError and ListenError."""
        self.config = config
        self._closing = False
        self._changing = threading.Lock()
        """Held while the configuration is changed."""
        self._stamps = _stamps(config.certificates)
        self._certificate_trouble: str | None = None
        self._told: str | None = None
        self._key_trouble: str | None = None
        self._keys = KeyDirectory(config.ech_keys) if config.ech_keys else None
        if self._keys is not None:
            _first_look(self._keys)
        self._keys_in_use = self._keys.keys if self._keys else ()
        self._tickets = TicketKeyDirectory(config.ticket_keys) if config.ticket_keys else None
        try:
            self._native = _native.Server(
                self._configuration(config, self._keys_in_use),
                host=config.listen.host,
                port=config.listen.port,
                workers=config.workers,
                log_level=log.getEffectiveLevel(),
            )
        except ArgumentError as error:
            raise _refused(error) from None
        except OSError as error:
            raise ListenError.from_os_error(str(config.listen), error) from None
        if self._keys is None:
            log.warning("there is no --ech-keys: clients can only connect with --no-ech")
        else:
            log.info("serving with %s", _names(self._keys_in_use))
        self._warn_of_tokens(config)
        try:
            self._status_port = self._open_status_port(config.status_listen)
        except BaseException:
            self._native.close()
            raise
        self._check_validity()
        self._thread = threading.Thread(target=self._attend, name="ech-workers-server", daemon=True)
        self._thread.start()

    def _open_status_port(self, addresses: tuple[ListenAddress, ...]) -> ServerPort | None:
        if not addresses:
            return None
        opened = ServerPort(addresses, self)
        opened.start()
        return opened

    def _move_status_port(self, addresses: tuple[ListenAddress, ...]) -> None:
        """Raises ListenError: it is where it was then."""
        before, present = self._status_port, self.config.status_listen
        if addresses == present:
            return
        overlap = before is not None and set(present) & set(addresses)
        if before is not None and overlap:
            # A port that stays cannot be opened a second time.
            before.close()
        try:
            self._status_port = self._open_status_port(addresses)
        except ListenError:
            if overlap:
                self._status_port = self._open_status_port(present)
            raise
        if before is not None:
            before.close()
        self.config = msgspec.structs.replace(self.config, status_listen=addresses)

    @property
    def status_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where its figures are."""
        return () if self._status_port is None else self._status_port.addresses

    def unready(self) -> str | None:
        """Why clients cannot use it, or None."""
        if self._closing:
            return "it is ending: no new sessions"
        problems = [problem for pair in self.config.certificates if (problem := validity_problem(pair)) is not None]
        refused = [problem for problem in problems if "expires" not in problem]
        return refused[0] if refused else None

    @property
    def address(self) -> tuple[str, int]:
        """The address that is listened on, with the port that was taken."""
        return self._native.address

    def snapshot(self) -> _native.ServerSnapshot:
        """The counters at this moment."""
        return self._native.snapshot()

    def __enter__(self) -> TunnelServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, grace: float = 0.0) -> None:
        """Stops accepting, and ends what is still open after at most ``grace`` seconds."""
        self._closing = True
        self._native.close(grace)
        self._thread.join()
        if self._status_port is not None:
            self._status_port.close()
        self._tell()

    def status(self) -> dict[str, object]:
        """The counters and the keys, for people and programs."""
        now = self.snapshot()
        return {
            "listening": authority(*self.address),
            **{name: getattr(now, name) for name in _COUNTERS},
            "ech_by_config": {str(number): count for number, count in now.ech_by_config.items()},
            "ech_keys": [key.path.name for key in self._keys_in_use],
            "tokens": [msgspec.structs.asdict(token) for token in self.tokens()],
            "session_list": [msgspec.structs.asdict(session) for session in self.sessions()],
            "certificates": [validity_problem(pair) or f"{pair.name} is valid" for pair in self.config.certificates],
        }

    def tokens(self) -> list[TokenStatus]:
        """What each token carries, in the configured order."""
        return [TokenStatus(*token) for token in self._native.tokens()]

    def sessions(self, most: int = SESSIONS_MAX) -> list[ServedSession]:
        """The sessions now, those that have carried the most first; of many the first ``most``."""
        return [
            ServedSession(
                one.session,
                one.label,
                one.peer,
                one.mode,
                one.streams,
                one.streams_total,
                one.bytes_up,
                one.bytes_down,
                one.age,
            )
            for one in self._native.sessions(most)
        ]

    def apply(self, config: ServerConfig) -> None:
        """Takes what can be changed while the server runs from another configuration; the rest keeps its value. Raises
        ConfigError and ListenError: nothing has changed then."""
        with self._changing:
            before = self.config
            directory, keys = self._keys, self._keys_in_use
            if config.ech_keys != before.ech_keys:
                if config.ech_keys is None:
                    raise ConfigError("a server that runs cannot do without ECH keys: restart it", option="--ech-keys")
                directory = KeyDirectory(config.ech_keys)
                _first_look(directory)
                keys = directory.keys
            self._move_status_port(config.status_listen)
            try:
                self._take(config, keys)
            except ConfigError:
                self._move_status_port(before.status_listen)
                raise
            self._keys = directory
            live = {name: getattr(config, name) for name in _LIVE}
            self.config = msgspec.structs.replace(before, **live)
            if config.tokens != before.tokens:
                self._warn_of_tokens(config)
            if config.ech_keys != before.ech_keys:
                log.info("now serving with %s", _names(keys))
            if config.certificates != before.certificates:
                self._certificates_changed()

    def _warn_of_tokens(self, config: ServerConfig) -> None:
        for warning in short_tokens(_labelled(config)):
            log.warning("%s", warning)

    def _take(self, config: ServerConfig, keys: tuple[KeyFile, ...]) -> None:
        """Has the native server go by this. Raises ConfigError: nothing has changed then."""
        try:
            self._native.apply(self._configuration(config, keys))
        except ArgumentError as error:
            raise _refused(error) from None
        self._keys_in_use = keys

    def _configuration(self, config: ServerConfig, keys: tuple[KeyFile, ...]) -> _native.ServerConfiguration:
        """Raises ArgumentError."""
        return _native.ServerConfiguration(
            certificates=[(pair.chain, pair.key) for pair in config.certificates],
            tokens=_labelled(config),
            path=config.path,
            decoy=config.decoy,
            healthz=config.public_healthz,
            ech_keys=[(key.pem, key.retry) for key in keys],
            ticket_keys=self._tickets.keys if self._tickets else None,
            allow_private_targets=config.allow_private_targets,
            max_sessions=config.max_sessions,
            max_streams=config.max_streams,
            memory_limit=config.memory_limit,
            connect_timeout=config.connect_timeout,
            idle_timeout=config.idle_timeout,
        )

    def _certificates_changed(self) -> None:
        pairs = self.config.certificates
        self._stamps = _stamps(pairs)
        log.info("now serving with the certificates %s", ", ".join(pair.name for pair in pairs))
        self._check_validity()

    def _renew_certificates(self) -> None:
        """Takes certificates whose files have changed; while the new ones are wrong, the pairs in use stay."""
        with self._changing:
            pairs = self.config.certificates
            stamps = _stamps(pairs)
            if stamps == self._stamps:
                return
            try:
                read = tuple(
                    pair
                    if pair.chain_file is None or pair.key_file is None
                    else CertificatePair.read(pair.chain_file, pair.key_file)
                    for pair in pairs
                )
                if read == pairs:
                    self._stamps = stamps
                else:
                    renewed = msgspec.structs.replace(self.config, certificates=read)
                    self._take(renewed, self._keys_in_use)
                    self.config = renewed
                    self._certificates_changed()
            except ConfigError as error:
                # It is tried again each second: the chain may be there before its key.
                if error.message != self._certificate_trouble:
                    self._certificate_trouble = error.message
                    log.error("the certificates in use stay: %s", error.message, extra=about(error))
            else:
                self._certificate_trouble = None

    def summary(self) -> str:
        """What happened so far, in one line: sessions, and what ECH configurations the clients used."""
        return _summary(self.snapshot(), self._keys_in_use)

    def _check_validity(self) -> None:
        """Reports certificates that clients refuse, or will before long."""
        for pair in self.config.certificates:
            problem = validity_problem(pair)
            if problem is not None:
                log.warning("%s", problem, extra={"layer": CertificateError.default_layer})

    def _tell(self) -> None:
        summary = self.summary()
        if summary != self._told:
            self._told = summary
            log.info("%s", summary)

    def _attend(self) -> None:
        look = time.monotonic() + WATCH_INTERVAL
        tell = time.monotonic() + STATUS_INTERVAL
        validity = time.monotonic() + VALIDITY_INTERVAL
        while True:
            try:
                event = self._native.next_event(max(0.0, look - time.monotonic()))
            except EngineClosed:
                return
            if isinstance(event, _native.LogLine):
                forward(event)
            if time.monotonic() >= look:
                look = time.monotonic() + WATCH_INTERVAL
                self._renew_certificates()
                if self._keys is not None:
                    self._swap(self._keys)
                if self._tickets is not None and self._tickets.refresh():
                    self._swap_ticket_keys(self._tickets)
                if look >= validity:
                    validity = look + VALIDITY_INTERVAL
                    self._check_validity()
                if look >= tell:
                    tell = look + STATUS_INTERVAL
                    self._tell()

    def _swap(self, directory: KeyDirectory) -> None:
        """Takes over what changed in the key directory; whatever is wrong there, the keys in use stay."""
        try:
            with self._changing:
                if directory is not self._keys or not directory.refresh():
                    return
                if not directory.keys:
                    log.error(
                        "there is no ECH key in %s any more: the keys in use stay until there is one",
                        directory.path,
                        extra=ABOUT_CONFIG,
                    )
                    return
                self._take(self.config, directory.keys)
        except (OSError, ConfigError) as error:
            # Once for each cause: this is looked at every second.
            problem = error.message if isinstance(error, ConfigError) else str(error)
            if problem != self._key_trouble:
                self._key_trouble = problem
                log.error("the ECH keys in use stay: %s", problem, extra=ABOUT_CONFIG)
        else:
            self._key_trouble = None
            log.info("now serving with %s", _names(directory.keys))
            self._tell()

    def _swap_ticket_keys(self, directory: TicketKeyDirectory) -> None:
        try:
            with self._changing:
                self._take(self.config, self._keys_in_use)
        except ConfigError as error:
            log.error("the ticket keys in use stay: %s", error.message, extra=about(error))
        else:
            log.info("session tickets are now under %s", ", ".join(directory.names))


# Whose value each part of the native configuration is, where the names differ.
_OPTIONS = {"certificates": "--cert", "tokens": "--token"}


def _refused(error: ArgumentError) -> ConfigError:
    option = _OPTIONS.get(error.argument, f"--{error.argument.replace('_', '-')}")
    return ConfigError(error.problem, option=option)


# What can be changed while it runs; the last line has its effect in the command.
_LIVE = (
    *("drain", "status_listen", "status_hosts", "status_token"),
    *("certificates", "ech_keys"),
    *("tokens", "labels", "path", "decoy", "public_healthz"),
    *("allow_private_targets", "max_sessions", "max_streams", "memory_limit", "connect_timeout", "idle_timeout"),
    *("log_file", *LogTuning.__struct_fields__),
)


def _labelled(config: ServerConfig) -> list[tuple[str, str]]:
    labels = config.labels or tuple(f"token {number}" for number in range(1, len(config.tokens) + 1))
    return list(zip(config.tokens, labels, strict=True))


def _stamps(pairs: tuple[CertificatePair, ...]) -> list[Stamp | None]:
    """What changes when the files of certificates do."""
    files = [file for pair in pairs for file in (pair.chain_file, pair.key_file) if file is not None]
    found: list[Stamp | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
    return found


def _first_look(directory: KeyDirectory) -> None:
    try:
        directory.refresh()
    except OSError as error:
        raise ConfigError(f"cannot read {directory.path}: {error.strerror}", option="--ech-keys") from None
    if not directory.keys:
        raise ConfigError(
            f"there is no ECH key in {directory.path}",
            option="--ech-keys",
            advice=f"make one with `ech-workers keygen --public-name NAME --out {directory.path}`",
        )


def _names(keys: tuple[KeyFile, ...]) -> str:
    names = ", ".join(
        f"{key.path.name} ({', '.join(key.public_names)}{'' if key.retry else '; for decryption only'})" for key in keys
    )
    return f"{len(keys)} ECH key{'' if len(keys) == 1 else 's'}: {names}"


def _summary(now: _native.ServerSnapshot, keys: tuple[KeyFile, ...]) -> str:
    owners = {number: key.path.name for key in keys for number in key.config_ids}
    line = (
        f"so far: sessions {now.sessions_total}, streams {now.streams_total};"
        f" ECH accepted {now.ech_accepted}, rejected {now.ech_rejected}, absent {now.ech_absent}"
    )
    # The most used first; a stray id that nobody has a key for must not fill the log.
    used = sorted(now.ech_by_config.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{owners.get(number, f'id {number}, no key')}: {count}" for number, count in used[:_SUMMARY_IDS]]
    if len(used) > _SUMMARY_IDS:
        told.append(f"{len(used) - _SUMMARY_IDS} other ids: {sum(count for _, count in used[_SUMMARY_IDS:])}")
    return f"{line}; clients used {', '.join(told)}" if told else line


_SUMMARY_IDS = 8

_COUNTERS = (
    "uptime",
    "sessions",
    "sessions_total",
    "streams",
    "streams_total",
    "streams_failed",
    "echoes_total",
    "bytes_up",
    "bytes_down",
    "handshakes_failed",
    "ech_accepted",
    "ech_rejected",
    "ech_absent",
)
