"""What a tunnel that runs consists of: the native engine, the supervisor in its thread, the open ports."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from ech_workers import _native, descriptors, lanes, rules, waiting
from ech_workers.config import SHARED, ClientConfig, ListenAddress
from ech_workers.ech import EchStore
from ech_workers.engine import engine_configuration
from ech_workers.errors import ConfigError, EngineClosed, ListenError
from ech_workers.numbering import Numbering
from ech_workers.options.client import LogTuning
from ech_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from ech_workers.overview import SupervisorStatus
    from ech_workers.status.port import StatusPort

__all__ = ["LIVE", "Listener", "Running"]

log = logging.getLogger("ech_workers")


class Listener:
    """An open SOCKS5 and HTTP port of a tunnel. It closes with ``close``, at the end of a ``with``, or with the tunnel."""

    def __init__(self, native: _native.Listener, opened: list[Listener]) -> None:
        """``opened``: those that are open, of which this is one until it is closed."""
        self._native = native
        self._opened = opened
        opened.append(self)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that programs connect to."""
        return self._native.address

    @property
    def host(self) -> str:
        return self.address[0]

    @property
    def port(self) -> int:
        return self.address[1]

    def close(self) -> None:
        """Closes the port; connections that came by it go on. May be called twice."""
        with contextlib.suppress(ValueError):
            self._opened.remove(self)
        self._native.close()

    def __iter__(self) -> Iterator[Any]:
        """``host, port = tunnel.listen(...)``."""
        return iter(self.address)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.address
        return f"<Listener on {f'[{host}]' if ':' in host else host}:{port}>"


class Running:
    """What works for a tunnel once it is started. It knows nothing of the ``Tunnel``, which may be forgotten."""

    def __init__(
        self,
        config: ClientConfig,
        on_event: Callable[[_native.Event], object] | None,
        places: Callable[[ClientConfig], int] | None = None,
    ) -> None:
        """places: how many local connections there may be by a configuration; None: as many as it says. Raises ListenError, and ConfigError for a certificate file that cannot be used."""
        self.config = config
        self._on_event = on_event
        self.listeners: list[Listener] = []
        self.status_port: StatusPort | None = None
        self._forgotten = False
        if places is None:
            descriptors.tell(config)
        self._places = places or (lambda config: config.max_connections)
        self._numbering = Numbering()
        self._numbers = self._numbering.of(config.upstreams)
        self._rules = tuple(rules.compiled(config.rules, self._numbers))
        self._limits = self._limits_of(config)
        self.engine = _engine(config, engine_configuration(config, rules=self._rules, **self._limits))
        try:
            self._configured = {
                address: self.listen(address, config.username, config.password) for address in config.listen
            }
            self.supervisor = self._supervisor(on_event)
            if config.status_listen:
                from ech_workers.status.port import StatusPort

                self.status_port = StatusPort(config.status_listen, self)
        except BaseException:
            self.engine.close()
            raise
        self._thread = waiting.Thread(self._supervise, "ech-workers-supervisor")
        if self.status_port is not None:
            self.status_port.start()

    def _supervisor(self, on_event: Callable[[_native.Event], object] | None, former: Sequence[int] = ()) -> Supervisor:
        """By the present configuration."""
        return Supervisor(
            self.config,
            self.engine,
            EchStore(self.config.cache_dir),
            on_event=on_event,
            watch_network=True,
            numbers=self._numbers,
            former=former,
        )

    def _supervise(self) -> None:
        supervisor = self.supervisor
        supervisor.run()
        if self._forgotten and supervisor is self.supervisor:
            self.engine.close()

    def apply(self, config: ClientConfig) -> None:
        """See ``Tunnel.apply``."""
        old = self.config
        before = self._numbers
        numbers = self._numbering.of(config.upstreams)
        try:
            # Lists may be long: they are read when that is needed.
            is_new = config.rules != old.rules or numbers != before
            compiled = tuple(rules.compiled(config.rules, numbers)) if is_new else self._rules
            is_as_before = all(getattr(config, name) == getattr(old, name) for name in _LIMITS)
            limits = self._limits if is_as_before else self._limits_of(config)
            configuration = engine_configuration(config, rules=compiled, **limits)
        except ConfigError:
            self._numbering.of(old.upstreams)
            raise
        credentials = (config.username, config.password)
        if credentials != (old.username, old.password):
            # A port knows its own, so each is opened anew.
            for listener in self._configured.values():
                listener.close()
            self._configured = {}
        added = {}
        try:
            for address in config.listen:
                if address not in self._configured:
                    added[address] = self.listen(address, *credentials)
            self._move_status_port(config)
        except (ListenError, ConfigError):
            for listener in added.values():
                listener.close()
            for address in old.listen:
                if address not in self._configured:
                    self._configured[address] = self.listen(address, old.username, old.password)
            self._numbering.of(old.upstreams)
            raise
        self._numbers = numbers
        self._rules, self._limits = compiled, limits
        # From here on nothing fails.
        self.engine.apply(configuration)
        self._configured |= added
        for address in self._configured.keys() - set(config.listen):
            # It takes no new connections; those that came by it go on.
            self._configured.pop(address).close()
        live = {name: getattr(config, name) for name in LIVE}
        self.config = msgspec.structs.replace(old, **live)
        named = rules.servers_of(old.rules) != rules.servers_of(config.rules)
        if named or any(getattr(old, name) != getattr(config, name) for name in _OF_SUPERVISOR):
            self._replace_supervisor(Numbering.gone(before, numbers))
        elif (old.policy, old.standby) != (config.policy, config.standby):
            self.supervisor.select(config.policy, config.standby)

    def _limits_of(self, config: ClientConfig) -> dict[str, Any]:
        """What the engine is told of them."""
        limits = {name: getattr(config, name) for name in _LIMITS}
        return limits | {"max_connections": self._places(config)}

    def _move_status_port(self, config: ClientConfig) -> None:
        before = self.status_port
        if config.status_listen == self.config.status_listen:
            return
        from ech_workers.status.port import StatusPort

        overlap = before is not None and set(self.config.status_listen) & set(config.status_listen)
        if before is not None and overlap:
            # A port that stays cannot be opened a second time.
            before.close()
        try:
            opened = StatusPort(config.status_listen, self) if config.status_listen else None
        except ListenError:
            if overlap:
                self.status_port = StatusPort(self.config.status_listen, self)
                self.status_port.start()
            raise
        if before is not None:
            before.close()
        self.status_port = opened
        if opened is not None:
            opened.start()

    def _replace_supervisor(self, gone: Sequence[int]) -> None:
        """Another supervisor, by the present configuration, for the same engine. gone: the servers that are not in it any more."""
        old = self.supervisor
        old.stop()
        self._thread.join()
        stale = {session.session for session in self.engine.snapshot().sessions}
        stale |= {session.session for session in old.status().sessions}
        plans = list(gone)
        if len(self._numbers) == 1:
            # There is no choice any more.
            self.engine.route(())

        def on_event(event: _native.Event) -> None:
            # The first session of the new one: now the others may go.
            if isinstance(event, _native.SessionUp) and event.session not in stale:
                while stale:
                    self.engine.retire(stale.pop())
                while plans:
                    # The same for those that are dialled for each connection.
                    self.engine.set_plan(None, plans.pop())
            if self._on_event is not None:
                self._on_event(event)

        self.supervisor = self._supervisor(on_event, gone)
        self._thread = waiting.Thread(self._supervise, "ech-workers-supervisor")

    def listen(self, address: ListenAddress, username: str | None, password: str | None) -> Listener:
        try:
            native = self.engine.listen(address.host, address.port, username=username, password=password)
        except EngineClosed:
            raise
        except ValueError as error:
            raise ConfigError(str(error), option="--username") from None
        except OSError as error:
            raise ListenError.from_os_error(str(address), error) from None
        return Listener(native, self.listeners)

    def server_names(self) -> dict[int, str]:
        return dict(zip(self._numbers, (upstream.name for upstream in self.config.upstreams), strict=True))

    def connections(self) -> tuple[_native.ConnectionSnapshot, ...]:
        return self.engine.connections()

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        return tuple(listener.address for listener in self.listeners)

    def status(self) -> SupervisorStatus:
        return self.supervisor.status()

    def snapshot(self) -> _native.Snapshot:
        return self.engine.snapshot()

    def close(self, grace: float) -> None:
        self.listeners.clear()
        if self.status_port is not None:
            self.status_port.close()
        self.supervisor.stop()
        self._thread.join()
        waiting.in_thread(lambda: self.engine.close(grace))

    def forget(self) -> None:
        """Ends everything without waiting for it."""
        self._forgotten = True
        if self.status_port is not None:
            self.status_port.close()
        self.supervisor.stop()


# What a supervisor is made of: another value takes another one.
# Sessions go by the idle timeout that they began with, so another one takes other sessions.
_OF_SUPERVISOR = (*SHARED, "servers", "resolvers", "sessions", "ca_file", "ca_pem", "cache_dir", "idle_timeout")

# What the engine is told for what comes from then on.
_LIMITS = ("max_connections", "open_timeout", "idle_timeout", "memory_limit", "reply")

# What can be changed while the tunnel runs; the last line has its effect in the command that runs it.
LIVE = (
    *_OF_SUPERVISOR,
    *_LIMITS,
    *("policy", "standby"),
    *("listen", "username", "password", "rules"),
    *("status_listen", "status_hosts", "status_token"),
    *("log_file", *LogTuning.__struct_fields__),
)


def _engine(config: ClientConfig, configuration: _native.EngineConfiguration) -> _native.Engine:
    return _native.Engine(
        configuration,
        # A session's bytes use one core at a time, so more threads than sessions would idle.
        workers=config.sessions or lanes.MOST,
        log_level=log.getEffectiveLevel(),
    )
