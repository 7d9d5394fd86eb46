"""A network of its own for a part of a test: a loopback interface that behaves like a network card."""

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable

import pytest

_CLONE_NEWNET = 0x40000000

MAY_UNSHARE = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="a network of its own needs root and iproute2"
)


def alone(body: Callable[[], None], *, mtu: int = 1500, limit: float = 150.0) -> None:
    """Runs ``body`` in a thread that has nothing but a loopback interface of this MTU.

    With the loopback's usual MTU of 64 KiB the kernel holds more than 2 MiB for each socket that is not read. The threads and
    processes that ``body`` starts are in the same network.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
            subprocess.run(["ip", "link", "set", "lo", "mtu", str(mtu), "up"], check=True, timeout=20)
            body()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    assert not thread.is_alive(), f"not over after {limit} s"
    if raised:
        raise raised[0]
