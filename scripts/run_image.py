"""Builds the container image and runs it, without a registry and without a daemon: `make run-image`, as root.

The steps of deploy/container/Containerfile are buildah's (`--isolation chroot`). Of the two images that it begins with, a registry's
are not asked for: a root of Debian by debootstrap is in their place, and in the first one this machine's Rust. Then both commands
of deploy/container/compose.yaml run as the image says (its user, its environment, its health check), on a root that is read-only,
without a capability, and a request goes through them.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONTAINER = ROOT / "deploy" / "container"
ROOTS = ROOT / "target" / "roots"
STORE = ROOT / "target" / "image"
IMAGE = "localhost/ech-workers"
NEEDED = ("buildah", "debootstrap", "unshare", "nsenter", "ip", "openssl", "curl")
# Where a request goes to: the server reaches no private address.
WEB = "93.184.215.14"
# Seconds, for a wait that only a defect makes long.
LIMIT = 120.0


def main(arguments: Sequence[str]) -> int:
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if os.geteuid() or missing:
        print("run-image: needs root" + "".join(f", and {program}" for program in missing))
        return 2
    if list(arguments) == ["inside"]:
        return inside(json.load(sys.stdin))
    build()
    container = buildah("from", "--pull-never", IMAGE)
    try:
        image = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        image["root"] = buildah("mount", container)
        own = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
        command = [*own, sys.executable, __file__, "inside"]
        return subprocess.run(command, input=json.dumps(image), text=True, timeout=900).returncode
    finally:
        buildah("umount", container)
        buildah("rm", container)


def buildah(*words: str | Path) -> str:
    """In a store of its own: no other image is touched. Its last line."""
    places = ("--root", STORE / "storage", "--runroot", STORE / "run")
    done = subprocess.run(["buildah", *places, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"buildah {words[0]} ended with {done.returncode}")
    return done.stdout.strip()


def build() -> None:
    text = (CONTAINER / "Containerfile").read_text("utf-8")
    default = re.search(r"^ARG DEBIAN=(\S+)$", text, re.MULTILINE)
    assert default is not None
    release = default[1]
    first, second = (name.replace("${DEBIAN}", release) for name in re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    root = debian(release)
    stand_in(second, root)
    stand_in(first, root, with_rust=True)
    options = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--layers=false", "--network", "host")
    buildah("build", *options, "--file", CONTAINER / "Containerfile", "--tag", IMAGE, ROOT)


def debian(release: str) -> Path:
    root = ROOTS / f"{release}-image"
    if not root.is_dir():
        partial_root = root.with_suffix(".partial")
        shutil.rmtree(partial_root, ignore_errors=True)
        partial_root.mkdir(parents=True)
        log = ROOTS / f"{root.name}.log"
        with log.open("w") as stream:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", release, partial_root], stdout=stream, stderr=stream
            )
        if done.returncode:
            raise SystemExit(f"debootstrap failed:\n{log.read_text('utf-8', errors='replace')[-2000:]}")
        partial_root.rename(root)
    return root


def stand_in(name: str, root: Path, *, with_rust: bool = False) -> None:
    """An image of this name, of the root; `with_rust` with this machine's Rust and its authorities, by which the package indexes
    are reached."""
    container = buildah("from", "--pull-never", "scratch")
    into = Path(buildah("mount", container))
    subprocess.run(["cp", "-a", f"{root}/.", into], check=True)
    if with_rust:
        sysroot = Path(output("rustc", "--print", "sysroot"))
        host = re.search(r"^host: (\S+)$", output("rustc", "-vV"), re.MULTILINE)
        assert host is not None
        for part in (*("bin", "libexec"), *(f"lib/{file.name}" for file in (sysroot / "lib").glob("*.so*"))):
            if (sysroot / part).exists():
                subprocess.run(["cp", "-a", sysroot / part, into / "usr/local" / Path(part).parent], check=True)
        (into / "usr/local/lib/rustlib").mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", sysroot / "lib/rustlib" / host[1], into / "usr/local/lib/rustlib"], check=True)
        # Not where the package ca-certificates writes.
        bundle = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")
        shutil.copyfile(bundle, into / "usr/local/share/authorities.pem")
        for variable in ("PIP_CERT", "CARGO_HTTP_CAINFO"):
            buildah("config", "--env", f"{variable}=/usr/local/share/authorities.pem", container)
    buildah("umount", container)
    buildah("commit", "--quiet", "--rm", container, name)


def output(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# What is below runs in namespaces of its own, and ends with them.

# $0: the root. What is written goes to a tmpfs that each program has for itself, as compose.yaml says.
CONFINE = """
mount -o remount,bind,ro "$0"; mount -o remount,bind,ro "$0/etc/ech-workers"
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 tmpfs "$0/run/ech-workers"; exec chroot "$0" "$@"
"""


class Image:
    def __init__(self, image: dict[str, Any]) -> None:
        self.root = Path(image["root"])
        self.health: list[str] = image["Healthcheck"]["Test"][1:]
        self._entry: list[str] = image["Entrypoint"]
        self._user = image["User"].partition(":")
        self._variables: list[str] = image["Env"]
        assert image["Healthcheck"]["Test"][0] == "CMD", image["Healthcheck"]

    def command(self, words: Sequence[str]) -> list[str]:
        """Words in the image, as its user and without a capability."""
        user = ["setpriv", f"--reuid={self._user[0]}", f"--regid={self._user[2]}", "--clear-groups"]
        return [*user, "--bounding-set=-all", "--no-new-privs", "/usr/bin/env", "-i", *self._variables, *words]

    def ours(self, words: Sequence[str]) -> list[str]:
        """The image's own command with these words, confined."""
        return ["unshare", "--mount", "sh", "-euc", CONFINE, str(self.root), *self.command([*self._entry, *words])]


def inside(config: dict[str, Any]) -> int:
    image = Image(config)
    with tempfile.TemporaryDirectory(prefix="ech-workers-image-") as folder:
        files = Path(folder)
        mount(image.root, files)
        for words in (["--version"], ["demo", "--check"]):
            subprocess.run(image.ours(words), check=True, timeout=LIMIT)
        certificates(files)
        keys = [*image.command(["/opt/ech-workers/bin/ech-workers", "keygen", "--public-name", "www.example.net"])]
        os.chown(files, 65532, 65532)
        subprocess.run(["chroot", image.root, *keys, "--out", "/etc/ech-workers/keys"], check=True, timeout=LIMIT)
        write_configuration(files)
        services = yaml.safe_load((CONTAINER / "compose.yaml").read_text("utf-8"))["services"]
        with (
            web(),
            running(image, "server", services["server"]["command"]),
            running(image, "proxy", services["proxy"]["command"]),
        ):
            request = ("curl", "--silent", "--show-error", "--fail", "--output", "/dev/null", "--max-time", "60")
            subprocess.run([*request, "--proxy", "socks5h://127.0.0.1:1080", f"http://{WEB}/"], check=True)
            print("run-image: a request went through the proxy and the server")
    print(
        "run-image: both commands run, as the image's user on a root that is read-only, are healthy, and end in order"
    )
    return 0


def mount(root: Path, files: Path) -> None:
    for name in ("run/ech-workers", "etc/ech-workers"):
        (root / name).mkdir(exist_ok=True)
    for words in (
        f"ip address add {WEB}/32 dev lo",
        "ip link set lo up",
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --bind /dev {root}/dev",
        f"mount --bind {files} {root}/etc/ech-workers",
    ):
        subprocess.run(shlex.split(words), check=True)


def certificates(files: Path) -> None:
    """As in docs/tutorial.md."""
    for file, name in (("www", "www.example.net"), ("tunnel", "tunnel.example.net")):
        words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN={name} -addext subjectAltName=DNS:{name}"
        names = ("-keyout", files / f"{file}.key", "-out", files / f"{file}.pem")
        subprocess.run(["openssl", *words.split(), *names], check=True, stderr=subprocess.DEVNULL)
    (files / "ca.pem").write_bytes((files / "www.pem").read_bytes() + (files / "tunnel.pem").read_bytes())


def write_configuration(files: Path) -> None:
    (files / "tokens").write_text("correct-horse-battery\n")
    (key,) = (files / "keys").glob("*.ech")
    (files / "config.toml").write_text(
        'server = "tunnel.example.net:8443/ws"\nserver_ip = "127.0.0.1"\ntoken_file = "tokens"\n'
        f'ech_config = "@keys/{key.name}"\nca_file = "ca.pem"\n'
    )
    for file in files.iterdir():
        os.chown(file, 65532, 65532)
        file.chmod(0o700 if file.is_dir() else 0o600)


@contextlib.contextmanager
def web() -> Iterator[None]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        server = ThreadingHTTPServer((WEB, 80), partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@contextlib.contextmanager
def running(image: Image, name: str, words: Sequence[str]) -> Iterator[None]:
    """A program of the image, from when its health check says that it is well until it has ended after SIGTERM."""
    print(f"run-image: {name}", flush=True)
    program = subprocess.Popen(image.ours(words))
    place = ("nsenter", f"--mount=/proc/{program.pid}/ns/mnt", "chroot", str(image.root))

    def is_healthy() -> bool:
        return subprocess.run([*place, *image.command(image.health)], stderr=subprocess.DEVNULL).returncode == 0

    def has_ended() -> bool:
        return program.poll() is not None

    try:
        wait(lambda: has_ended() or is_healthy(), f"{name} is healthy")
        yield
        program.terminate()
        wait(has_ended, f"{name} has ended")
    finally:
        program.kill()
    if program.returncode:
        raise SystemExit(f"run-image: {name} ended with {program.returncode}")


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"run-image: not within {LIMIT:.0f} s: {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
