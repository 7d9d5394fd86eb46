"""Runs each Linux wheel of dist/ as on the machine that it is for: `make run-wheels`, as root.

A root of Debian for each processor is put together by debootstrap in target/roots; a foreign processor is QEMU's. In it the wheel
is installed with its dependencies in a fresh folder, and `ech-workers demo --check` has to pass. Debian has no Python for
musl: scripts/musl-python.sh builds one.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wheels import DIST, ROOT

ROOTS = ROOT / "target" / "roots"
RELEASE = "bookworm"  # the first Debian with Python 3.11
LIMIT = 600.0
"""Seconds for the check of one wheel; it takes 10, under QEMU a minute."""


class Machine(NamedTuple):
    """What a wheel is for. `pattern` finds the wheel, `platforms` are the tags of wheels that pip takes there."""

    processor: str
    library: str
    pattern: str
    platforms: tuple[str, ...]
    python: str


MACHINES = tuple(
    machine
    for processor in ("x86_64", "aarch64")
    for machine in (
        Machine(
            processor,
            "glibc",
            f"*manylinux*_{processor}.whl",
            tuple(f"manylinux_2_{minor}_{processor}" for minor in (36, 34, 28, 17)),
            "/usr/bin/python3",
        ),
        Machine(
            processor,
            "musl",
            f"*musllinux*_{processor}.whl",
            (f"musllinux_1_2_{processor}", f"musllinux_1_1_{processor}"),
            "/opt/musl-python/bin/python3",
        ),
    )
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def main(arguments: Sequence[str]) -> int:
    """Of the wheels whose names contain all arguments, or of all."""
    if os.geteuid() or missing(("debootstrap", "dpkg-deb", "chroot", "unshare")):
        print("run-wheels: this needs root, and debootstrap, dpkg-deb, chroot and unshare")
        return 2
    failed = 0
    for machine in MACHINES:
        for wheel in sorted(DIST.glob(machine.pattern)):
            if all(argument in wheel.name for argument in arguments):
                print(f"{wheel.name}: on {machine.processor} with {machine.library}", flush=True)
                failed += not run(wheel, machine)
    print(f"run-wheels: {failed} failed" if failed else "run-wheels: all passed")
    return 1 if failed else 0


def missing(programs: Sequence[str]) -> list[str]:
    return [program for program in programs if shutil.which(program) is None]


def run(wheel: Path, machine: Machine) -> bool:
    root = debian(machine.processor)
    if machine.library == "musl" and not (root / machine.python.lstrip("/")).exists():
        subprocess.run(["sh", ROOT / "scripts" / "musl-python.sh", machine.processor, root], check=True)
    site = root / "opt" / "site"
    shutil.rmtree(site, ignore_errors=True)
    install(wheel, machine, site)
    inside = ["/usr/bin/env", "-i", "HOME=/tmp", "PATH=/usr/bin:/bin", "PYTHONPATH=/opt/site"]
    emulator = qemu(machine.processor, root)
    program = "import platform, sys; print(sys.version.split()[0], platform.machine(), *platform.libc_ver())"
    commands = [["-c", program], ["-m", "ech_workers", "--version"], ["-m", "ech_workers", "demo", "--check"]]
    for command in commands:
        # The processes end with the namespace, whatever happens; loopback alone is there.
        started = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "sh", "-c", SETUP, str(root)]
        if emulator:
            # env is of the other processor too.
            words = [emulator, *(word for name in inside[2:] for word in ("-E", name)), machine.python, *command]
        else:
            words = [*inside, machine.python, *command]
        try:
            ended = subprocess.run([*started, *words], timeout=LIMIT, env={"PATH": os.environ["PATH"]})
        except subprocess.TimeoutExpired:
            print(f"not done after {LIMIT:.0f} s")
            return False
        if ended.returncode:
            print(f"{' '.join(command)} ended with {ended.returncode}")
            return False
    return True


SETUP = 'mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; ip link set lo up; exec chroot "$0" "$@"'


def debian(processor: str) -> Path:
    """A root with Python and musl's loader. The packages are unpacked, not configured: that would run programs of the other
    processor."""
    root = ROOTS / f"{RELEASE}-{processor}"
    if root.is_dir():
        return root
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    options: list[str | Path] = [
        "--foreign",
        f"--arch={ARCHITECTURES[processor]}",
        "--variant=minbase",
        "--include=python3,musl",
    ]
    log = ROOTS / f"{root.name}.log"
    with log.open("w") as stream:
        ended = subprocess.run(["debootstrap", *options, RELEASE, partial], stdout=stream, stderr=stream)
    if ended.returncode:
        raise SystemExit(f"debootstrap failed:\n{log.read_text('utf-8', errors='replace')[-2000:]}")
    for package in sorted((partial / "var" / "cache" / "apt" / "archives").glob("*.deb")):
        unpacked = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        subprocess.run(
            ["tar", "-C", partial, "--keep-directory-symlink", "-xf", "-"], stdin=unpacked.stdout, check=True
        )
        if unpacked.wait():
            raise SystemExit(f"{package.name} cannot be unpacked")
    partial.rename(root)
    return root


def install(wheel: Path, machine: Machine, site: Path) -> None:
    """The wheel and what it depends on, for the machine's kind, by this machine's pip."""
    kinds = [f"--platform={tag}" for tag in machine.platforms]
    versions = ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none"]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        site,
        "--only-binary=:all:",
    ]
    subprocess.run([*command, *kinds, *versions, wheel], check=True)


def qemu(processor: str, root: Path) -> str | None:
    """The emulator's path in the root, where one is needed."""
    if processor == platform.machine():
        return None
    found = shutil.which(f"qemu-{processor}-static")
    if found is None:
        raise SystemExit(f"qemu-{processor}-static is missing (Debian's package qemu-user-static)")
    shutil.copy2(found, root / "usr" / "bin")
    return f"/usr/bin/{Path(found).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
