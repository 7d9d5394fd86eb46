"""Real DoH servers on loopback, of different make: BIND's named (HTTP/2 alone) and CoreDNS (HTTP/2 and HTTP/1.1)."""

import shutil
import signal
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from .authority import Certificate
from .built import building
from .ports import unused_port
from .processes import Process, Processes, run
from .requirements import missing, program
from .waiting import wait_until

NAME = "dns.ech-workers.test"

COREDNS_SOURCE = Path(__file__).resolve().parent.parent / "interop" / "coredns"
# About a minute the first time, with 2 cores; Go keeps what it built.
BUILD_TIMEOUT = 900.0


@dataclass
class DohServer:
    """A running server whose zone files may be changed."""

    process: Process
    port: int
    folder: Path
    ca: Path

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}/dns-query"

    def pause(self) -> None:
        """From now on it takes connections and says nothing."""
        self.process.signal(signal.SIGSTOP)
        # Each of its threads stops when the signal reaches it.
        wait_until(self._stopped, f"{NAME} has stopped")

    def _stopped(self) -> bool:
        stats = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in stats)

    def resume(self) -> None:
        self.process.signal(signal.SIGCONT)


def zone(*records: str, serial: int = 1) -> str:
    """A zone file with what every zone has."""
    head = f"$TTL 300\n@ IN SOA ns root {serial} 3600 600 86400 30\n@ IN NS ns\nns IN A 127.0.0.1\n"
    return head + "\n".join(records) + "\n"


def start_named(
    folder: Path, processes: Processes, certificate: Certificate, ca: Path, zones: dict[str, str]
) -> DohServer:
    """BIND 9, authoritative for the zones; a zone that cannot be read is answered with SERVFAIL."""
    # Where Debian has it is not on every user's PATH.
    named = shutil.which("named", path="/usr/sbin:/usr/local/sbin") or program("named", "bind9")
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, text in zones.items():
        file = folder / f"{name}.zone"
        file.write_text(text)
        listed.append(f'zone "{name}" {{ type primary; file "{file}"; }};')
    # It cannot say which ports it took.
    port, plain = unused_port(), unused_port()
    configuration = folder / "named.conf"
    configuration.write_text(
        f"""
tls t {{ cert-file "{certificate.chain}"; key-file "{certificate.key}"; }};
http h {{ endpoints {{ "/dns-query"; }}; }};
options {{
    directory "{folder}"; pid-file none; session-keyfile none; lock-file none;
    recursion no; notify no; dnssec-validation no; listen-on-v6 {{ none; }};
    listen-on port {plain} {{ 127.0.0.1; }};
    listen-on port {port} tls t http h {{ 127.0.0.1; }};
}};
controls {{ }};
"""
        + "\n".join(listed)
        + "\n"
    )
    server = DohServer(processes.start(named, "-g", "-n", "1", "-c", configuration), port, folder, ca)
    _wait_ready(server)
    return server


def reload_named(server: DohServer, name: str, text: str) -> None:
    """Gives a zone new contents; its serial must be higher than before."""
    before = len(server.process.lines)
    (server.folder / f"{name}.zone").write_text(text)
    server.process.signal(signal.SIGHUP)
    server.process.wait_line(rf"zone {name}/IN: loaded serial", after=before)


def build_coredns() -> Path:
    """The program, with the plugins that the tests use."""
    if shutil.which("go") is None:
        missing("go is not installed (1.26 or later): see https://go.dev/doc/install")
    with building("coredns") as folder:
        built = run("go", "build", "-o", folder / "coredns", ".", cwd=COREDNS_SOURCE, timeout=BUILD_TIMEOUT)
    if built.returncode != 0:
        missing(f"CoreDNS cannot be built: {built.stderr.strip()[-500:]}")
    return folder / "coredns"


def start_coredns(
    coredns: Path, folder: Path, processes: Processes, certificate: Certificate, ca: Path, zones: dict[str, str]
) -> DohServer:
    """CoreDNS. Beside the zones: everything under erratic.test is answered with SERVFAIL (A: truncated), everything
    under slow.test after 8 seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    port = unused_port()
    common = f"bind 127.0.0.1\n    tls {certificate.chain} {certificate.key}\n    errors\n    log"
    blocks = []
    for name, text in zones.items():
        file = folder / f"{name}.zone"
        file.write_text(text)
        blocks.append(f"https://{name}:{port} {{\n    {common}\n    file {file} {name}\n}}")
    for name, behaviour in (("erratic.test", "truncate 4096"), ("slow.test", "delay 1 8s")):
        erratic = f"erratic {{\n        {behaviour}\n    }}"
        blocks.append(f"https://{name}:{port} {{\n    {common}\n    {erratic}\n}}")
    corefile = folder / "Corefile"
    corefile.write_text("\n".join(blocks) + "\n")
    server = DohServer(processes.start(coredns, "-conf", corefile), port, folder, ca)
    _wait_ready(server)
    return server


def _wait_ready(server: DohServer) -> None:
    context = ssl.create_default_context(cafile=server.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def answers() -> bool:
        if not server.process.running:
            raise AssertionError(f"{server.process.name} ended:\n{server.process.output}")
        try:
            with (
                socket.create_connection(("127.0.0.1", server.port), 2) as tcp,
                context.wrap_socket(tcp, server_hostname=NAME),
            ):
                return True
        except OSError:
            return False

    wait_until(answers, f"{server.process.name} takes TLS connections", 20)
