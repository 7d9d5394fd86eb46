"""What `import ech_workers` promises."""

from __future__ import annotations

import subprocess
import sys

import ech_workers


def test_every_promised_name_is_there() -> None:
    for name in ech_workers.__all__:
        assert getattr(ech_workers, name) is not None
        assert name in dir(ech_workers)


def test_a_wrong_name_is_an_attribute_error() -> None:
    assert not hasattr(ech_workers, "Tunnels")


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("asyncio", "dns", "rich", "click", "msgspec", "websockets")
    code = f"import sys, ech_workers; print([name for name in {heavy!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_command_line_loads_neither_rich_nor_dnspython_nor_websockets_nor_asyncio() -> None:
    heavy = ("asyncio", "dns", "rich", "websockets")
    code = (
        "import sys, ech_workers.cli.proxy, ech_workers.tunnel;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_status_port_loads_no_asyncio_and_a_tunnel_without_one_no_websockets() -> None:
    code = """
import sys
from ech_workers import Tunnel
options = dict(token="x", ech=False, server_ip="127.0.0.1", cache_dir="")
tunnel = Tunnel("127.0.0.1:1/ws", **options)
tunnel.start()
print("websockets" in sys.modules)
tunnel.close()
tunnel = Tunnel("127.0.0.1:1/ws", **options, status_listen="0")
tunnel.start()
print("websockets" in sys.modules, len(tunnel.status_addresses), "asyncio" in sys.modules, "ssl" in sys.modules)
tunnel.close()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True", "1", "False", "False"]
