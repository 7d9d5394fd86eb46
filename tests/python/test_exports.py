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
    heavy = ("asyncio", "dns", "rich", "click", "msgspec")
    code = f"import sys, ech_workers; print([name for name in {heavy!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_command_line_loads_neither_rich_nor_dnspython_nor_asyncio() -> None:
    heavy = ("asyncio", "dns", "rich")
    code = (
        "import sys, ech_workers.cli.proxy, ech_workers.tunnel;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
