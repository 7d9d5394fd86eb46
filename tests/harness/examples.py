"""Runs the Python examples of a page, one after the other, in one namespace: `python -m harness.examples PAGE WORLD`.

They are taken from the text as it stands. WORLD (JSON) says where the names that they use lead: the tunnel's server and its
token, the resolver, and the targets. Nothing else is different from a user's program.
"""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

from ech_workers import Tunnel, waiting
from ech_workers.config import ClientConfig


def examples(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, with the lines they begin at."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start()) + 2, match[1]) for match in found]


def settle(world: dict[str, Any]) -> None:
    """Makes names lead into the world of the test."""
    build = ClientConfig.build.__func__  # type: ignore[attr-defined]

    def built(cls: type[ClientConfig], /, *, server: str, **options: Any) -> ClientConfig:
        if server == "tunnel.example/ws":
            server = world["server"]
            if options.get("token") == "...":
                options["token"] = world["token"]
            options |= {key: world[key] for key in ("doh_server", "doh_ip", "ca_file", "cache_dir")}
        made: ClientConfig = build(cls, server=server, **options)
        return made

    ClientConfig.build = classmethod(built)  # type: ignore[assignment, method-assign]
    open_blocking, open_async = waiting.await_opening, Tunnel._begin

    def there(host: str, port: int) -> tuple[str, int]:
        known = world["targets"].get(f"{host}:{port}")
        return (host, port) if known is None else ("127.0.0.1", known)

    def await_opening(engine: Any, host: str, port: int, timeout: float | None) -> Any:
        return open_blocking(engine, *there(host, port), timeout)

    def begin(self: Tunnel, host: str, port: int, limit: float | None, done: Any) -> Any:
        return open_async(self, *there(host, port), limit, done)

    waiting.await_opening = await_opening
    Tunnel._begin = begin  # type: ignore[method-assign]


def main() -> None:
    page, world = Path(sys.argv[1]), json.loads(sys.argv[2])
    logging.basicConfig(level="WARNING")
    settle(world)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, example in examples(page):
        text = example
        for before, after in world["replaced"].items():
            text = text.replace(before, after)
        code = compile("\n" * (line - 1) + text, str(page), "exec")
        exec(code, namespace)
        print(f"ran {page.name}:{line}", flush=True)


if __name__ == "__main__":
    main()
