"""curl through a proxy."""

import hashlib
import subprocess
from pathlib import Path

from .processes import run
from .requirements import program
from .secrecy import heard
from .tunnel import ProxyProgram

KINDS = ("socks5", "http-connect", "http")


def curl(
    proxy: ProxyProgram, kind: str, *arguments: str | Path, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs curl through the proxy by SOCKS5, HTTP CONNECT or a plain HTTP request."""
    done = run(
        program("curl", "curl"),
        "--silent",
        "--show-error",
        "--max-time",
        str(timeout),
        *proxy.curl(kind),
        *arguments,
        timeout=timeout + 10,
        env=NO_PROXY,
    )
    heard((done.stdout + done.stderr).encode())
    return done


def fetch(proxy: ProxyProgram, kind: str, url: str, timeout: float = 60.0) -> bytes:
    """The body behind the URL; fails when curl does."""
    fetched = subprocess.run(
        [
            program("curl", "curl"),
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            str(timeout),
            *proxy.curl(kind),
            url,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout + 10,
        env=NO_PROXY,
        check=False,
    )
    assert fetched.returncode == 0, f"curl: {fetched.returncode}: {fetched.stderr.decode()}\n{proxy.process.output}"
    return heard(fetched.stdout)


def fetch_sha256(proxy: ProxyProgram, kind: str, url: str, timeout: float = 300.0) -> tuple[int, str]:
    """Size and sum of what is behind the URL, however large."""
    digest, size = hashlib.sha256(), 0
    with subprocess.Popen(
        [
            program("curl", "curl"),
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            str(timeout),
            *proxy.curl(kind),
            url,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=NO_PROXY,
    ) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(1 << 20):
            digest.update(piece)
            size += len(piece)
        code = process.wait(10)
    assert code == 0, f"curl: {code} after {size} bytes\n{proxy.process.output}"
    return size, digest.hexdigest()


# The user's own proxy settings must not decide about loopback.
NO_PROXY = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
