"""Runs the shell blocks of a page in their order, as a reader would: `python -m harness.shell_world PAGE FOLDER`.

It is started in namespaces of its own. In one network is the reader's machine, in the other one the Internet: the resolvers that
are built in, example.org, and the tunnel's server, at the addresses and by the names that the pages use. So the commands are run
as they stand in the text.

A command that runs until it is ended (`proxy`, `server`) is as in a terminal of its own: the next command comes when it is
ready, and it goes on. What a block prints is on the standard input of the next one.
"""

import contextlib
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .authority import Authority
from .ech import ech_key
from .namespaces import UNSHARE
from .processes import Processes
from .resolver import Resolver
from .shell_examples import PREPARED, STANDS_FOR, WITH_SERVER, Block, blocks
from .tunnel import COMMAND, TOKEN
from .waiting import wait_until

TESTS = Path(__file__).resolve().parents[1]
SERVER, WEB = "203.0.113.7", "93.184.215.14"
RESOLVERS = {"cloudflare-dns.com": "1.1.1.1", "dns.example.net": "192.0.2.53"}
SITES = ("example.org", "example.com")
PUBLIC = ("www.example.net", "cover.example")
HIDDEN = (
    "tunnel.example.net",
    "tunnel.example",
    "other.example.org",
    "name.account.workers.dev",
    "my-worker.account.workers.dev",
)
USED = "curl --silent --show-error --fail --output /dev/null --proxy socks5h://127.0.0.1:1080 https://example.org/"
# Seconds: for one block.
LIMIT = 120.0


def run(page: str, folder: Path) -> str:
    """Runs a page in namespaces of its own; what was said. AssertionError if a block failed."""
    processes = ("--pid", "--fork", "--kill-child", "--mount-proc")
    done = subprocess.run(
        [*UNSHARE, *processes, sys.executable, "-m", "harness.shell_world", page, folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def main(page: str, folder: Path) -> None:
    reader = folder / "reader"
    (reader / "work").mkdir(parents=True)
    private_etc(folder)
    processes = Processes()
    with networks(SERVER if page in WITH_SERVER else None) as there, internet(folder) as (authority, resolvers):
        certificates = folder / "certificates"
        certificates.mkdir()
        for name in (*PUBLIC, *HIDDEN):
            issued = authority.issue(name)
            (certificates / f"{name}.pem").write_bytes(issued.chain.read_bytes())
            (certificates / f"{name}.key").write_bytes(issued.key.read_bytes())
        key = ech_key(folder / "keys", PUBLIC[0], 7)
        for name in HIDDEN:
            for resolver in resolvers:
                resolver.add(name, "A", SERVER)
        if page not in WITH_SERVER:
            for resolver in resolvers:
                for name in (*HIDDEN, "cloudflare-ech.com"):
                    resolver.add_https(name, 443, key.base64)
            names = [word for name in (PUBLIC[0], *HIDDEN) for word in pair(certificates, name)]
            where = ("--listen", f"{SERVER}:443", "--path", "/", "--token", TOKEN, "--ech-keys", folder / "keys")
            processes.start(COMMAND, "server", *where, *names).wait_line("listening on")
        environment = machine(folder, reader, authority) | {
            "CERTIFICATES": str(certificates),
            "TOKEN": TOKEN,
            "ECH_CONFIG": key.base64,
        }
        said, place = "", reader / "work"
        for block in blocks():
            if block.page != page or block.reason:
                continue
            shell = Shell(there, environment, place)
            publish(shell.run(PREPARED.get(block.key, ""), ""), resolvers)
            said = shell.run(as_meant(block), said)
            publish(said, resolvers)
            place = shell.place
            print(f"ran {block}", flush=True)
        processes.stop()


def pair(certificates: Path, name: str) -> tuple[str | Path, ...]:
    return "--cert", certificates / f"{name}.pem", "--key", certificates / f"{name}.key"


def publish(said: str, resolvers: list[Resolver]) -> None:
    """The records that `keygen` has printed."""
    for owner, record in re.findall(r"^(?:DNS record)? *(\S+)\. 300 IN HTTPS (.*)$", said, re.MULTILINE):
        for resolver in resolvers:
            resolver.add(owner, "HTTPS", record)


def as_meant(block: Block) -> str:
    """The block's text; a proxy that it starts is used."""
    text = block.text
    for (page, word), meant in STANDS_FOR.items():
        if page == block.page:
            text = text.replace(word, meant)
    if re.search(r"^(ECH_\S+ )?ech-workers proxy\b", text, re.MULTILINE) and "curl " not in text:
        text += f"\n{USED}"
    return text


class Shell:
    """Runs texts in the reader's shell, one after the other; each begins in the folder in which the last one ended."""

    def __init__(self, there: tuple[str, ...], environment: dict[str, str], place: Path) -> None:
        self._there = there
        self._environment = environment
        self._world = Path(environment["WORLD"])
        self.place = place

    def run(self, text: str, given: str) -> str:
        """What it prints. Ends the program if it fails."""
        # Files: what is started beside the shell would keep a pipe open.
        said, complaints = self._world / "stdout", self._world / "stderr"
        with said.open("w") as output, complaints.open("w") as errors:
            done = subprocess.run(
                [*self._there, "bash", "-euo", "pipefail", "-c", f'{text}\npwd >"$WORLD/place"'],
                input=given,
                stdout=output,
                stderr=errors,
                text=True,
                timeout=LIMIT,
                check=False,
                env=self._environment,
                cwd=self.place,
            )
        if done.returncode:
            logs = "".join(f"--- {log.name}\n{log.read_text()}" for log in sorted(self._world.glob("*.log")))
            raise SystemExit(
                f"ended with {done.returncode}:\n{text}\n---\n{said.read_text()}{complaints.read_text()}{logs}"
            )
        self.place = Path((self._world / "place").read_text().strip())
        return said.read_text()


def machine(folder: Path, reader: Path, authority: Authority) -> dict[str, str]:
    """The environment of the reader's shell."""
    programs, runtime = folder / "bin", folder / "run"
    programs.mkdir()
    runtime.mkdir(mode=0o700)
    command = programs / "ech-workers"
    words = shlex.join([sys.executable, "-m", "harness.shell_world"])
    command.write_text(
        "#!/bin/sh\n"
        f'case "$1" in proxy | server) PYTHONPATH={shlex.quote(str(TESTS))} exec {words} start "$@" ;; esac\n'
        f'exec {shlex.quote(str(COMMAND))} "$@"\n'
    )
    command.chmod(0o755)
    trusted = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(reader),
        "XDG_RUNTIME_DIR": str(runtime),
        "LANG": "C.UTF-8",
        "WORLD": str(folder),
        **dict.fromkeys(trusted, str(authority.path)),
    }


def start(role: str, arguments: list[str]) -> None:
    """Starts `proxy` or `server` beside the shell; an earlier one is ended first."""
    subprocess.run([COMMAND, "stop", "--of", role], capture_output=True, check=False)
    log = Path(os.environ["WORLD"]) / f"{role}.log"
    del os.environ["PYTHONPATH"]
    with log.open("w") as output:
        program = subprocess.Popen(
            [COMMAND, role, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    wait_until(lambda: "listening on " in log.read_text() or program.poll() is not None, f"{role} listens", 30)
    if program.returncode is not None:
        raise SystemExit(log.read_text())


def private_etc(folder: Path) -> None:
    """The machine's /etc stays as it is; what is written there is kept in memory, and gone with the namespace."""
    copy = folder / "etc"
    copy.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", copy], check=True)
    # Some of it only root may read.
    subprocess.run(["cp", "-a", "/etc/.", copy], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["mount", "--bind", copy, "/etc"], check=True)
    # git looks up the machine's own name.
    hosts = f"127.0.0.1 localhost {socket.gethostname()}\n" + "".join(f"{WEB} {name}\n" for name in SITES)
    for name, text in (("hosts", hosts), ("resolv.conf", "nameserver 127.0.0.1\n")):
        (folder / name).write_text(text)
        # These may be mounts or links in a container.
        subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)


@contextlib.contextmanager
def networks(own: str | None) -> Iterator[tuple[str, ...]]:
    """The Internet's addresses here, and the reader's network in another namespace: what runs a command there. With `own` that
    machine has this address."""
    ip("link", "set", "lo", "up")
    for address in (WEB, *RESOLVERS.values(), *(() if own else (SERVER,))):
        ip("address", "add", f"{address}/32", "dev", "lo")
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    try:
        here = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != here, "the other namespace is there", 20)
        there = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        ip("link", "add", "reader", "type", "veth", "peer", "name", "line", "netns", str(holder.pid))
        ip("address", "add", "10.0.0.1/24", "dev", "reader")
        ip("link", "set", "reader", "up")
        for words in (
            "link set lo up",
            *([f"address add {own}/32 dev lo"] if own else []),
            "address add 10.0.0.2/24 dev line",
            "link set line up",
            "route add default via 10.0.0.1",
        ):
            subprocess.run([*there, "ip", *words.split()], check=True)
        yield there
    finally:
        holder.kill()
        holder.wait()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class _Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def internet(folder: Path) -> Iterator[tuple[Authority, list[Resolver]]]:
    """Resolvers, and example.org by http and https with a git repository."""
    authority = Authority(folder / "authority")
    www = folder / "www"
    www.mkdir()
    (www / "index.html").write_text("<title>Example</title>")
    git = ("git", "-C", www, "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    for words in ("init -q made", "-C made commit -q --allow-empty -m a", "clone -q --bare made repository.git"):
        subprocess.run([*git, *words.split()], check=True)
    subprocess.run(["git", "-C", www / "repository.git", "update-server-info"], check=True)
    certificate = authority.issue(*SITES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    servers = [ThreadingHTTPServer((WEB, port), partial(_Files, directory=str(www))) for port in (80, 443)]
    servers[1].socket = context.wrap_socket(servers[1].socket, server_side=True, do_handshake_on_connect=False)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    resolvers = [Resolver(authority.issue(name), name, (address, 443)) for name, address in RESOLVERS.items()]
    yield authority, resolvers
    for server in servers:
        server.shutdown()
    for resolver in resolvers:
        resolver.stop()


if __name__ == "__main__":
    if sys.argv[1] == "start":
        start(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1], Path(sys.argv[2]))
