"""Records the demo's screen for the README: `.venv/bin/python scripts/record_screen.py docs/demo.svg`.

The tunnel really runs, requests really go through it; what is drawn is the live table as a terminal would show it.
"""

import http.client
import re
import sys
from pathlib import Path

from rich.console import Console

from ech_workers.cli.demo import notes
from ech_workers.demo import Demo
from ech_workers.status.facts import Observer
from ech_workers.status.table import render
from ech_workers.tunnel import Tunnel

REQUESTS, BYTES = 24, 8 << 20


def main(file: Path) -> None:
    console = Console(record=True, width=96, file=sys.stderr, force_terminal=True)
    with Demo() as demo:
        tunnel = Tunnel.from_config(demo.client(mode="yamux", listen="127.0.0.1:1080"))
        try:
            tunnel.start()
            tunnel.wait_ready(15)
            observer = Observer(tunnel)
            observer.look()
            for _ in range(REQUESTS):
                exchange(tunnel, demo)
            console.print("$ make demo", style="bold")
            console.print(render(observer.look(), notes(demo, tunnel.addresses[0])))
        finally:
            tunnel.close()
    drawn = console.export_svg(title="ech-workers demo")
    # Fonts from elsewhere would not load in a README anyway; the reader's monospace does.
    file.write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def exchange(tunnel: Tunnel, demo: Demo) -> None:
    """Something down, and something up."""
    client = http.client.HTTPConnection(*demo.target_address, timeout=15)
    client.sock = tunnel.create_connection(demo.target_address, timeout=15)
    client.request("GET", f"/bytes/{BYTES}")
    assert len(client.getresponse().read()) == BYTES
    client.request("POST", "/digest", bytes(BYTES // 8))
    assert len(client.getresponse().read()) == 64
    client.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
