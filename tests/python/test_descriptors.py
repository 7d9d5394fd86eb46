"""How many connections fit into the descriptors that a process may have."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from ech_workers import descriptors


@pytest.mark.parametrize(
    ("wanted", "allowed", "each", "fitting"),
    [
        (4096, None, 1, 4096),
        (4096, 524_288, 2, 4096),
        (4096, 4352, 1, 4096),
        (4096, 4352, 2, 2048),
        (4096, 1024, 1, 768),
        (4096, 64, 2, 24),
        (4096, 1, 2, 1),
        (100, 1024, 2, 100),
    ],
)
def test_every_connection_has_its_descriptors(
    wanted: int, allowed: int | None, each: int, fitting: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert descriptors.connections(wanted, allowed, each=each) == fitting
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (fitting < wanted)
    if said:
        assert f"{fitting} connections at a time instead of {wanted}" in said[0]


def test_the_limit_is_raised_as_far_as_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import resource; from ech_workers import descriptors;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (200, {hard}));"
        "print(descriptors.limit()); descriptors.raise_limit(); print(descriptors.limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["200", str(hard)]


PROGRAM = """
import logging, resource, sys
logging.basicConfig(format="%(levelname)s %(name)s %(message)s", stream=sys.stdout, level=logging.INFO)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
from ech_workers import Tunnel
for _ in range(2):
    tunnel = Tunnel("a.test", token="x", server_ip="127.0.0.1", ech=False, cache_dir="", connect="lazy", {options})
    tunnel.start()
    tunnel.close()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("max_connections=2000", "WARNING ech_workers this process may have 600 open files, which do for about 225 connections"),
        ("max_connections=2000, yamux=False", "about 150 connections at a time, and max_connections is 2000"),
        # Nobody asked for that many.
        ("", "INFO ech_workers this process may have 600 open files"),
        ("max_connections=200", ""),
    ],
)  # fmt: skip
def test_a_python_program_is_told_once_how_many_connections_fit_and_its_limit_stays(options: str, said: str) -> None:
    code = PROGRAM.replace("{options}", options)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "600"
    assert done.stdout.count("open files") == bool(said), done.stdout
    assert said in done.stdout
