"""Several ``--server`` on a command line, each with what is said of it alone behind commas, or as a link.

    --server home.example/ws,token-file=home.token --server ech-workers://TOKEN@other.example/ws,priority=1

The keys are the options' names as the command line spells them, and ``name``, ``priority`` and ``weight``; a switch is
written without a value (``no-yamux``). A comma that no key follows belongs to the path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ech_workers.errors import ConfigError
from ech_workers.options import link
from ech_workers.options.client import SERVER_TABLE
from ech_workers.options.schema import Option, options_of, parse
from ech_workers.options.sources import Given, Layer, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["has_keys", "read", "texts"]

_OPTION = "--server"


def texts(given: Given | None) -> tuple[str, ...]:
    """Every server that was given, as it was written. One to a line where only one text can be given."""
    if given is None:
        return ()
    values = given.value.splitlines() if isinstance(given.value, str) else given.value
    return tuple(value.strip() for value in values if value.strip())


def has_keys(text: str) -> bool:
    """Whether more is said than where the server is."""
    return len(_split(text)) > 1 or text.strip().lower().startswith(f"{link.SCHEME}://")


def read(text: str) -> tuple[Layer, tuple[str, ...]]:
    """What is said of one server, and the private authorities that its link trusts (PEM). Raises ConfigError."""
    address, *parts = _split(text)
    layer: Layer = {}
    authorities: tuple[str, ...] = ()
    if has_keys(address):
        linked = link.read(address)
        pem = linked.pop("ca_file", None)
        authorities = () if pem is None else (pem,)
        address = linked["server"]
        layer = {name: Given(value, f"{_OPTION} {address}") for name, value in linked.items()}
    else:
        layer["server"] = Given(address, _OPTION)
    own: dict[str, Any] = {}
    for part in parts:
        key, _, value = part.partition("=")
        declared, switched = _declared(key, address)
        if declared.several:
            own[declared.name] = (*own.get(declared.name, ()), value)
            continue
        if declared.name in own:
            raise _error(address, key, "is given twice")
        own[declared.name] = _value(declared, key, value, switched, address)
    return layer | {name: Given(value, _origin(address, name)) for name, value in own.items()}, authorities


def _split(text: str) -> Sequence[str]:
    """At the commas that a key follows."""
    return re.split(rf",(?=[A-Za-z][A-Za-z0-9_-]*=|(?:{'|'.join(_SWITCHES)})(?:,|$))", text.strip())


def _switches() -> dict[str, tuple[Option, bool]]:
    found: dict[str, tuple[Option, bool]] = {}
    for declared in options_of(SERVER_TABLE).values():
        if declared.kind == "switch":
            found[declared.flag.removeprefix("--")] = declared, True
            if declared.off:
                found[declared.off] = declared, False
    return found


_SWITCHES = _switches()


def _declared(key: str, address: str) -> tuple[Option, bool]:
    if key in _SWITCHES:
        return _SWITCHES[key]
    known = {declared.flag.removeprefix("--"): declared for declared in options_of(SERVER_TABLE).values()}
    declared = known.get(key)
    if declared is None or declared.name == "server":
        near = nearest(key, known)
        raise _error(
            address,
            key,
            "cannot be said of one server",
            advice=f"did you mean {near}?" if near else "write a comma of the path as %2C",
        )
    return declared, True


def _value(declared: Option, key: str, value: str, switched: bool, address: str) -> Any:
    if declared.kind == "switch":
        if value:
            raise _error(address, key, "takes no value")
        return switched
    if not value:
        raise _error(address, key, "has no value")
    try:
        return parse(declared, value)
    except ValueError as error:
        raise _error(address, key, str(error)) from None


def _origin(address: str, name: str) -> str:
    return f"{_OPTION} {address}: {name.replace('_', '-')}"


def _error(address: str, key: str, message: str, *, advice: str = "") -> ConfigError:
    return ConfigError(message, option=_origin(address, key[:40]), advice=advice)
