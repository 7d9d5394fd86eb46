"""Both ends of the tunnel as users start them: `ech-workers server` and `ech-workers proxy`."""

import re
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .authority import Authority, Certificate
from .ech import EchKey, ech_key
from .processes import Process, Processes
from .resolver import Resolver
from .secrecy import SERVER_NAME as SERVER_NAME
from .secrecy import WATCH

PUBLIC_NAME = "public.ech-workers.test"
RESOLVER_NAME = "resolver.ech-workers.test"
TOKEN = "correct-horse-battery"
PATH = "/ws"
COMMAND = Path(sys.executable).with_name("ech-workers")


@dataclass
class Site:
    """What both ends agree on: certificates, ECH keys, the resolver's records, and where files go."""

    folder: Path
    processes: Processes
    authority: Authority
    resolver: Resolver
    inner: Certificate
    outer: Certificate
    key: EchKey
    keys_folder: Path
    runtime: Path
    """For control sockets, whose paths may have no more than 107 bytes."""
    servers: list["ServerProgram"] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, processes: Processes, authority: Authority) -> "Site":
        keys = folder / "keys"
        return cls(
            folder=folder,
            processes=processes,
            authority=authority,
            resolver=Resolver(authority.issue(RESOLVER_NAME), RESOLVER_NAME),
            inner=authority.issue(SERVER_NAME),
            outer=authority.issue(PUBLIC_NAME),
            key=ech_key(keys, PUBLIC_NAME, 7),
            keys_folder=keys,
            runtime=Path(tempfile.mkdtemp(prefix="ech-")),
        )

    def server(
        self,
        *options: str | Path,
        certificate: Certificate | None = None,
        ech: bool = True,
        listen: str = "127.0.0.1:0",
        publish: bool = True,
        prefix: Sequence[str] = (),
        private_targets: bool = True,
    ) -> "ServerProgram":
        """Starts our server; with `publish` the resolver knows it (and its ECH configuration) then.

        `prefix` is a command that runs the server, such as one that limits what it may have. Without `private_targets` it
        reaches none of a test's targets.
        """
        inner = certificate or self.inner
        arguments: list[str | Path] = ["--cert", inner.chain, "--key", inner.key]
        if ech:
            arguments += ["--cert", self.outer.chain, "--key", self.outer.key, "--ech-keys", self.keys_folder]
        process = self.processes.start(
            *prefix,
            COMMAND,
            "server",
            "--listen",
            listen,
            *arguments,
            "--token",
            TOKEN,
            "--path",
            PATH,
            *(["--allow-private-targets"] if private_targets else []),
            *options,
        )
        found = process.wait_line(r"listening on \S*:(\d+)\b")
        program = ServerProgram(process, int(found.group(1)))
        self.servers.append(program)
        if publish:
            self.publish(program.port, self.key.base64 if ech else None)
        return program

    def counted_server(self) -> tuple["ServerProgram", Callable[[], int]]:
        """A server, and how many sessions it says that it has."""
        server = self.server("--status-listen", "0", publish=False)
        return server, lambda: server.figure("ech_workers_server_sessions")

    def publish(self, port: int, ech: str | None) -> None:
        """The records of a server on this port."""
        self.resolver.add(SERVER_NAME, "A", "127.0.0.1")
        self.resolver.add_https(SERVER_NAME, port, ech)

    def proxy_arguments(
        self,
        port: int,
        *options: str | Path,
        token: str = TOKEN,
        path: str = PATH,
        resolver: bool = True,
        trust: bool = True,
    ) -> list[str | Path]:
        """The command line of a proxy for the server on this port."""
        arguments: list[str | Path] = [
            COMMAND,
            "proxy",
            "--plain",
            "--server",
            f"{SERVER_NAME}:{port}{path}",
            "--token",
            token,
        ]
        if "--listen" not in options:
            arguments += ["--listen", "127.0.0.1:0"]
        if resolver:
            arguments += ["--doh-server", self.resolver.url, "--doh-ip", "127.0.0.1"]
        if trust:
            arguments += ["--ca-file", self.authority.path]
        return [*arguments, *options]

    def write_configuration(
        self, servers: dict[str, int], *lines: str, of_each: Sequence[str] = (), more: str = ""
    ) -> Path:
        """Writes the configuration file that a proxy of this site's environment finds.

        servers: the port of each by its name. lines: more options. of_each: one more line for each server, in their order.
        more: what follows the servers.
        """
        path = self.folder / ".config" / "ech-workers" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        written = [
            'listen = "127.0.0.1:0"',
            f'token = "{TOKEN}"',
            f'doh_server = "{self.resolver.url}"',
            'doh_ip = "127.0.0.1"',
            f'ca_file = "{self.authority.path}"',
            f'ech_config = "{self.key.base64}"',
            'server_ip = "127.0.0.1"',
            *lines,
        ]
        for number, (name, port) in enumerate(servers.items()):
            written += ["[[server]]", f'name = "{name}"', f'address = "{SERVER_NAME}:{port}{PATH}"']
            written += of_each[number : number + 1]
        path.write_text("\n".join(written) + "\n" + more)
        return path

    def proxy(
        self,
        port: int,
        *options: str | Path,
        token: str = TOKEN,
        path: str = PATH,
        resolver: bool = True,
        trust: bool = True,
        wait: bool = True,
        prefix: Sequence[str] = (),
    ) -> "ProxyProgram":
        """Starts a proxy; with `wait` its first session is up on return. `prefix` is a command that runs it."""
        arguments = self.proxy_arguments(port, *options, token=token, path=path, resolver=resolver, trust=trust)
        process = self.processes.start(*prefix, *arguments, env=self.environment)
        found = process.wait_line(r"listening on (\S*):(\d+)\b")
        program = ProxyProgram(process, int(found.group(2)))
        if wait:
            program.wait_session()
        return program

    @property
    def environment(self) -> dict[str, str]:
        """Nothing is remembered between tests, and nothing of the user's is read or changed."""
        return {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "HOME": str(self.folder),
        }


@dataclass
class ServerProgram:
    process: Process
    port: int

    def figure(self, name: str) -> int:
        """What a server that was started with a status port says of this metric now."""
        figures = self.process.wait_line(r"figures on (http://\S*:\d+/)").group(1)
        with urllib.request.urlopen(f"{figures}metrics", timeout=20) as answer:
            found = re.search(rf"^{name} (\d+)$", answer.read().decode(), re.MULTILINE)
        assert found, name
        return int(found.group(1))


@dataclass
class ProxyProgram:
    process: Process
    port: int

    def __post_init__(self) -> None:
        WATCH.port(self.port, lambda: self.process.running)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def wait_session(self, timeout: float = 20.0, *, after: int = 0) -> re.Match[str]:
        return self.process.wait_line(r"session up", timeout, after=after)

    def curl(self, kind: str) -> Sequence[str]:
        """curl's options for going through this proxy: socks5, http-connect, or http."""
        return {
            "socks5": ["--socks5-hostname", f"127.0.0.1:{self.port}"],
            "http-connect": ["--proxytunnel", "--proxy", f"http://127.0.0.1:{self.port}"],
            "http": ["--proxy", f"http://127.0.0.1:{self.port}"],
        }[kind]
