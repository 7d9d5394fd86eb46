"""Changes of the machine's network, seen through netlink in a namespace of the test's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ech_workers.network import NetworkWatch, _kinds

SCRIPT = """
import subprocess, sys, threading
from ech_workers.network import NetworkWatch
seen = threading.Semaphore(0)
watch = NetworkWatch(seen.release)
def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)
ip("link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b")
ip("link", "set", "veth-a", "up")
ip("address", "add", "192.0.2.1/24", "dev", "veth-a")
assert seen.acquire(timeout=20), "an address that comes is not seen"
while seen.acquire(timeout=1):
    pass
ip("route", "add", "198.51.100.0/24", "dev", "veth-a")
assert seen.acquire(timeout=20), "a route that comes is not seen"
ip("link", "delete", "veth-a")
assert seen.acquire(timeout=20), "an address that goes is not seen"
watch.close()
watch.close()
print("all seen")
"""


def _may_make_namespaces() -> bool:
    done = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "x", "type", "veth", "peer", "name", "y"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
def test_addresses_and_routes_that_come_and_go_are_told() -> None:
    if not _may_make_namespaces():
        pytest.skip("this user may not make network namespaces")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "all seen", done.stdout + done.stderr


def test_a_watch_that_sees_nothing_ends_at_once() -> None:
    watch = NetworkWatch(lambda: None)
    watch.close()


@pytest.mark.parametrize("data", [b"", b"\0" * 15, b"\0" * 16, b"\x05\0\0\0" + b"\0" * 12])
def test_messages_that_are_not_whole_do_no_harm(data: bytes) -> None:
    assert _kinds(data) == []
