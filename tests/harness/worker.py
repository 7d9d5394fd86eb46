"""A deployed Worker: the generated project, bundled, in the real runtime, behind a terminator of TLS with ECH."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ech_workers.worker import Project, create

from .authority import Authority
from .processes import Process, Processes
from .tunnel import TOKEN, Site
from .worker_tools import WorkerTools

OLD_DATE, NEW_DATE = "2025-06-01", "2026-11-01"
# Stands for the platform's own addresses: the runtime's network does not reach it.
PLATFORM_ADDRESS = "127.0.0.77"
PRIVATE_ADDRESS = "127.0.0.99"
DENIED = (f"{PLATFORM_ADDRESS}/32", f"{PRIVATE_ADDRESS}/32")

_CONFIG = """using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "internet", network = (
      allow = ["public", "private"], deny = [{denied}]{tls}))],
  sockets = [(name = "http", address = "127.0.0.1:0", service = "main", http = ())]);
const worker :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "{date}", bindings = [{bindings}], globalOutbound = "internet");
"""


@dataclass(frozen=True)
class Bundle:
    """A project and its bundle."""

    project: Project
    file: Path


def bundle(tools: WorkerTools, folder: Path, seed: int) -> Bundle:
    project = create(folder / "project", seed=seed)
    out = folder / "worker.js"
    tools.bundle(project.directory / project.main, out)
    return Bundle(project, out)


@dataclass
class Worker:
    """A running Worker. `port` speaks plain HTTP; `tls_port` is the terminator's, 0 without one."""

    process: Process
    port: int
    tls_port: int
    entry_path: str


class Runtime:
    """Starts Workers: one version of the runtime, one compatibility date, one script."""

    def __init__(
        self, folder: Path, processes: Processes, program: Path, date: str, script: Path, authority: Authority
    ) -> None:
        self.folder = folder
        self.processes = processes
        self.program = program
        self.date = date
        self.script = script
        self.authority = authority
        self._started = 0

    def start(
        self,
        variables: Mapping[str, str],
        listen: str = "127.0.0.1:0",
        *,
        denied: Sequence[str] = DENIED,
        trust: bool = False,
    ) -> tuple[Process, int]:
        """Starts the script with these variables; its process and its port.

        denied: prefixes that it cannot connect to. With `trust` it can connect by TLS to the authority's servers; the old
        runtime then takes a target's reset for its end.
        """
        self._started += 1
        folder = self.folder / str(self._started)
        folder.mkdir(parents=True)
        (folder / "worker.js").write_bytes(self.script.read_bytes())
        bindings = ", ".join(f"(name = {json.dumps(n)}, text = {json.dumps(v)})" for n, v in variables.items())
        text = _CONFIG.format(
            denied=", ".join(f'"{prefix}"' for prefix in denied),
            tls=f", tlsOptions = (trustedCertificates = [{json.dumps(self.authority.path.read_text())}])"
            if trust
            else "",
            date=self.date,
            bindings=bindings,
        )
        (folder / "config.capnp").write_text(text)
        process = self.processes.start(
            *(
                self.program,
                "serve",
                folder / "config.capnp",
                "config",
                "--control-fd=1",
                f"--socket-addr=http={listen}",
            )
        )
        return process, int(process.wait_event("listen", socket="http")["port"])


@dataclass
class Deployment:
    """Starts the generated Worker, and a terminator in front that the site's resolver knows."""

    site: Site
    runtime: Runtime
    bundle: Bundle
    terminator: Path
    lookups: str
    """URL of the resolver with a JSON interface that the Worker asks."""

    def start(
        self,
        *,
        token: str = TOKEN,
        tls: bool = True,
        listen: str = "127.0.0.1:0",
        denied: Sequence[str] = DENIED,
        **variables: str,
    ) -> Worker:
        names = self.bundle.project.variables
        entry = self.bundle.project.entry_path
        values = {
            "TOKEN": token,
            "ENTRY_PATH": entry,
            "RESOLVER": self.lookups,
            "PLATFORM_PREFIXES": f"{PLATFORM_ADDRESS}/32",
            "PRIVATE_PREFIXES": f"{PRIVATE_ADDRESS}/32",
            **variables,
        }
        process, listening = self.runtime.start(
            {names[name]: value for name, value in values.items()}, listen, denied=denied, trust="RELAY" in variables
        )
        return Worker(process, listening, self.terminate(listening) if tls else 0, entry)

    def terminate(self, port: int) -> int:
        """Starts a terminator in front of this port, which the site's resolver knows then; its port."""
        site = self.site
        process = site.processes.start(
            self.terminator,
            *("-to", f"127.0.0.1:{port}", "-ech-key", site.key.path),
            *(word for each in (site.inner, site.outer) for word in ("-certificate", f"{each.chain}:{each.key}")),
        )
        found = int(process.wait_event("listening")["address"].rpartition(":")[2])
        site.publish(found, site.key.base64)
        return found


@contextlib.contextmanager
def unanswered_port() -> Iterator[int]:
    """A connection to it is not answered: as many wait to be accepted as the kernel holds."""
    with socket.socket() as silent, contextlib.ExitStack() as held:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = int(silent.getsockname()[1])
        for _ in range(8):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        time.sleep(0.2)
        yield port
