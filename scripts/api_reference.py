"""Writes docs/reference/api.md from the docstrings and signatures of what the package exports.

python scripts/api_reference.py          writes it
python scripts/api_reference.py --print  prints it
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "api.md"

# What is described, in this order: the heading, the module, the names in it.
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Blocking", "ech_workers", ("Tunnel", "Listener", "StreamSocket")),
    ("asyncio", "ech_workers.aio", ("Tunnel", "Listener")),
    ("Status", "ech_workers.overview", ("SupervisorStatus", "SessionStatus", "EchStatus")),
    ("Configuration", "ech_workers", ("ClientOptions", "ClientConfig", "ServerConfig")),
    ("A server", "ech_workers", ("TunnelServer",)),
    ("Failures", "ech_workers.errors", ("TunnelError", "Cause")),
    ("httpx", "ech_workers.integrations.httpx", ("TunnelTransport", "AsyncTunnelTransport")),
    ("httpcore", "ech_workers.integrations.httpcore", ("TunnelBackend", "AsyncTunnelBackend")),
    ("requests", "ech_workers.integrations.requests", ("session", "TunnelAdapter")),
    ("urllib3", "ech_workers.integrations.urllib3", ("TunnelPoolManager",)),
    ("aiohttp", "ech_workers.integrations.aiohttp", ("TunnelConnector",)),
    ("http.client", "ech_workers.integrations.http_client", ("HTTPConnection", "HTTPSConnection")),
    ("urllib.request", "ech_workers.integrations.urllib_request", ("build_opener", "HTTPHandler", "HTTPSHandler")),
)

PREFACE = """\
# Python API

This page is made from the docstrings (`python scripts/api_reference.py`). How it meets other libraries is in [From Python](../how-to/python.md).

Everything is typed (`py.typed`). The same engine and supervisor as the command line's; relayed bytes never pass through Python except those that the program
itself reads and writes. Options are those of [`ech-workers proxy`](cli.md#ech-workers-proxy) by their names, with underscores: yes-or-no options are `ech=` and
`yamux=`, options that may be given several times take a string or a sequence, `ech_config=` takes text as on the command line or the bytes of an
ECHConfigList. Nothing is read from the environment. The native module, `ech_workers._native`, is described by its stub; it is not for direct use and may
change.
"""

# What a tunnel makes, and no program.
MADE = ("Listener", "StreamSocket", "Cause")

# Methods that programs use although their names begin with an underscore.
SPECIAL = ("__enter__", "__aenter__")


def reference() -> str:
    lines = [PREFACE]
    for heading, module_name, names in SECTIONS:
        module = importlib.import_module(module_name)
        lines.append(f"## {heading}\n")
        if module_name.startswith("ech_workers.integrations.") or module_name == "ech_workers.errors":
            lines.append(_text(module.__doc__))
        for name in names:
            lines += _entry(module_name, name, getattr(module, name))
    return "\n".join(lines).rstrip("\n") + "\n"


def _entry(module_name: str, name: str, thing: object) -> list[str]:
    if not inspect.isclass(thing):
        return [f"### {module_name}.{name}\n", *_call(name, thing)]
    lines = [f"### {module_name}.{name}\n", _text(thing.__doc__)]
    if "__init__" in vars(thing) and not issubclass(thing, BaseException) and name not in MADE:
        lines += _call(name, vars(thing)["__init__"])
    fields = {name: kind for name, kind in getattr(thing, "__annotations__", {}).items() if not name.startswith("_")}
    if fields and name.endswith(("Status", "Cause")):
        # Options are in the command line's reference.
        shown = (f"{field}: {kind}" for field, kind in fields.items())
        lines.append("```text\n" + "\n".join(shown) + "\n```\n")
    for member, value in vars(thing).items():
        if member.startswith("_") and member not in SPECIAL:
            continue
        if isinstance(value, property):
            if value.__doc__:
                lines += [f"#### {name}.{member}\n", _text(value.__doc__)]
        elif isinstance(value, classmethod | staticmethod):
            lines += _call(f"{name}.{member}", value.__func__)
        elif inspect.isfunction(value) and value.__doc__:
            lines += _call(f"{name}.{member}", value)
    return lines


def _call(name: str, function: object) -> list[str]:
    assert callable(function)
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    shown = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    # Annotations are kept as text, which str() shows in quotes.
    shown = re.sub(r": '([^']*)'", r": \1", shown)
    returns = signature.return_annotation
    arrow = (
        ""
        if returns in (inspect.Signature.empty, "None") or (name[0].isupper() and "." not in name)
        else f" -> {returns}"
    )
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    return [f"#### {name}\n", f"```text\n{prefix}{name}{shown}{arrow}\n```\n", _text(function.__doc__)]


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: single quotes of code, and indented blocks fenced."""
    text = inspect.cleandoc(docstring or "").replace("``", "`")
    blocks = re.split(r"\n\n", text)
    out = []
    for block in blocks:
        if block.startswith("    "):
            out.append(f"```text\n{textwrap.dedent(block)}\n```")
        else:
            out.append(block)
    return "\n\n".join(out) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(reference(), end="")
    else:
        FILE.write_text(reference())
