"""What is measured: the tunnel, and what it is compared with. Each is a client process and a server process."""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import socks
from harness.authority import Authority
from harness.processes import Process, Processes, run
from harness.tunnel import SERVER_NAME, ProxyProgram, ServerProgram, Site

from . import ROOT

TICKS = os.sysconf("SC_CLK_TCK")
BUILD_TIMEOUT = 1800.0
LOAD_TIMEOUT = 300.0


@dataclass
class Subject:
    """How to reach a target through it. Direct TCP has no processes."""

    name: str
    client: Process | None
    server: Process | None
    proxy: str
    """The SOCKS5 port, or - where `address` leads to the target by itself."""
    address: Callable[[int], str]
    """Where to connect, or what to ask the proxy for, to reach this port."""

    def connect(self, port: int) -> socket.socket:
        host, _, number = self.address(port).rpartition(":")
        if self.proxy == "-":
            return socket.create_connection((host, int(number)))
        proxy, _, listening = self.proxy.rpartition(":")
        return socks.connect((proxy, int(listening)), host, int(number), timeout=LOAD_TIMEOUT)

    def cpu_seconds(self) -> tuple[float, float]:
        """Of client and server, so far."""
        return cpu_seconds(self.client), cpu_seconds(self.server)


def cpu_seconds(process: Process | None) -> float:
    return cpu_seconds_of(Path(f"/proc/{process.pid}")) if process else 0.0


def cpu_seconds_of(entry: Path) -> float:
    """Of a process or one of its threads, by its folder in /proc."""
    fields = (entry / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_kib(process: Process, field: str = "VmRSS") -> int:
    """Resident memory now, or with VmHWM at its highest."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1])


@dataclass
class Bench:
    """One run: where its files are, its programs, how often each figure is taken, and how long the load lasts."""

    folder: Path
    processes: Processes
    site: Site
    rounds: int
    mebibytes: int
    quick: bool

    @classmethod
    def make(cls, folder: Path, rounds: int, mebibytes: int, quick: bool) -> "Bench":
        processes = Processes()
        site = Site.make(folder / "site", processes, Authority(folder / "authority"))
        return cls(folder, processes, site, rounds, mebibytes, quick)

    def stop(self) -> None:
        self.processes.stop()
        self.site.resolver.stop()

    @cached_property
    def programs(self) -> dict[str, Path]:
        """The examples: tls_pipe, load, sessions. Built as they ship, without the tests' assertions."""
        built = run(
            *("cargo", "build", "--release", "--locked", "--message-format=json"),
            *("-p", "ech-workers-tls", "-p", "ech-workers-tunnel", "--examples"),
            cwd=ROOT,
            timeout=BUILD_TIMEOUT,
        )
        if built.returncode != 0:
            raise SystemExit(built.stderr)
        artifacts = [json.loads(line) for line in built.stdout.splitlines()]
        return {a["target"]["name"]: Path(a["executable"]) for a in artifacts if a.get("executable")}

    def load(self, *arguments: str | int, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
        """Runs the load program to its end; what it found."""
        finished = run(*prefix, self.programs["load"], *map(str, arguments), timeout=LOAD_TIMEOUT)
        if finished.returncode != 0:
            raise SystemExit(f"load {arguments}: {finished.stderr}")
        found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return found

    def target(self, listen: str = "127.0.0.1:0", prefix: tuple[str, ...] = ()) -> tuple[Process, int]:
        """The load's other end, and its port."""
        process = self.processes.start(*prefix, self.programs["load"], "target", listen)
        return process, int(process.wait_event("listening")["address"].rpartition(":")[2])

    def known(self, server_ip: str = "127.0.0.1") -> tuple[str, ...]:
        """Options with which a proxy looks nothing up."""
        return ("--server-ip", server_ip, "--ech-config", self.site.key.base64)

    def tunnel(self, mode: str = "yamux") -> Subject:
        server, proxy = self.ends("--yamux" if mode == "yamux" else "--no-yamux")
        return Subject(mode, proxy.process, server.process, f"127.0.0.1:{proxy.port}", local)

    def ends(self, *options: str) -> tuple[ServerProgram, ProxyProgram]:
        server = self.site.server()
        return server, self.site.proxy(server.port, *self.known(), *options)

    def pipe(self, target: int, direction: str) -> Subject:
        """TLS alone, with the same BoringSSL; one way, to one target."""

        def start(*arguments: str | Path) -> tuple[Process, str]:
            process = self.processes.start(self.programs["tls_pipe"], *arguments, direction)
            return process, process.wait_event("listening")["address"]

        site = self.site
        server, address = start("server", "127.0.0.1:0", local(target), site.inner.chain, site.inner.key)
        client, listening = start("client", "127.0.0.1:0", address, SERVER_NAME, site.authority.path)
        return Subject("TLS pipe", client, server, "-", lambda _: listening)

    def stunnel(self, target: int) -> Subject | None:
        """TLS in C with OpenSSL, a connection each; None when it is not installed."""
        program = shutil.which("stunnel4") or shutil.which("stunnel")
        if program is None:
            return None
        outer, inner = free_port(), free_port()
        common = (
            "foreground = yes\ndebug = 3\npid =\nsyslog = no\nsslVersionMin = TLSv1.3\n"
            "ciphersuites = TLS_AES_128_GCM_SHA256\n"
        )
        chain, key = self.site.inner.chain, self.site.inner.key
        server = f"[server]\naccept = {local(outer)}\nconnect = {local(target)}\ncert = {chain}\nkey = {key}\n"
        client = (
            f"[client]\nclient = yes\naccept = {local(inner)}\nconnect = {local(outer)}\nsni = {SERVER_NAME}\n"
            f"CAfile = {self.site.authority.path}\nverifyChain = yes\n"
        )
        started = []
        for name, text, port in (("server", server, outer), ("client", client, inner)):
            file = self.folder / f"stunnel-{name}-{port}.conf"
            file.write_text(common + text)
            started.append(self.processes.start(program, file))
            wait_listening(port)
        return Subject("stunnel", started[1], started[0], "-", lambda _: local(inner))


def direct() -> Subject:
    return Subject("direct TCP", None, None, "-", local)


def local(port: int) -> str:
    return f"127.0.0.1:{port}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_listening(port: int) -> None:
    """Without a connection, which the program would carry to the target."""
    wanted = f":{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 10
    while wanted not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < deadline, port
        time.sleep(0.05)
