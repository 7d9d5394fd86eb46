"""How an option is declared, and what can be asked of a declaration."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from ech_workers.errors import ConfigError

__all__ = [
    "Kind",
    "Live",
    "Option",
    "Schema",
    "check",
    "flag",
    "option",
    "options_of",
    "parse",
    "parse_seconds",
    "parse_size",
]

Kind = Literal["text", "switch", "number", "seconds", "size", "choice"]
Live = Literal["now", "drains", "sessions", "restart"]
"""What it takes to change an option of a running program. now: it counts at once. drains: what is open goes on as it was,
what is new goes by the new value. sessions: a session goes by the value that it began with. restart: only a new process takes it."""


Schema = tuple[type[msgspec.Struct], ...]
"""What one side takes: the fields of these structs."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One declared option."""

    name: str
    """As in Python and in the configuration file; the command line has hyphens instead of underscores."""
    kind: Kind
    several: bool
    default: Any
    about: str
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    path: bool = False
    """Names a file or directory; a relative one in a configuration file is relative to that file."""
    live: Live = "restart"
    replaces: tuple[str, ...] = ()
    """What was given for these in a place of less precedence does not count when this is given."""
    shown_default: str | None = None
    """In words, where the value does not say it."""
    off: str | None = None
    """The name on the command line that turns a switch off."""
    api: str | None = None
    """Its type for Python programs, where they may give more than texts."""
    file_only: bool = False
    """Only in a configuration file."""
    repeats: bool = False
    """The command line may give it several times, though one text is its value elsewhere."""

    @property
    def flag(self) -> str:
        """``--token-file``."""
        return flag(self.name)

    @property
    def default_text(self) -> str:
        if self.shown_default is not None:
            return self.shown_default
        if self.kind == "switch":
            return self.flag if self.default else (f"--{self.off}" if self.off else "off")
        if self.several:
            return ", ".join(self.default) or "none"
        return "none" if self.default is None else _number(self.default, self.kind)


def flag(name: str) -> str:
    """The option's name on the command line."""
    return "--" + name.replace("_", "-")


def option(about: str, *, low: float | None = None, high: float | None = None, **more: Any) -> msgspec.Meta:
    """The declaration that stands in ``Annotated`` beside an option's type; see ``Option`` for what it takes."""
    return msgspec.Meta(ge=low, le=high, description=about, extra=more)


@functools.cache
def options_of(schema: Schema) -> dict[str, Option]:
    """The options of a schema by name."""
    found: dict[str, Option] = {}
    for struct in schema:
        hints = get_type_hints(struct, include_extras=True)
        defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
        found |= {name: _declared(name, hints[name], defaults[name]) for name in struct.__struct_fields__}
    return found


def _declared(name: str, hint: Any, default: Any) -> Option:
    assert get_origin(hint) is Annotated, name
    kind_of, *metas = get_args(hint)
    fields: dict[str, Any] = {}
    for meta in metas:
        fields |= {key: value for key, value in (("low", meta.ge), ("high", meta.le)) if value is not None}
        if meta.description is not None:
            fields["about"] = meta.description
        fields |= meta.extra or {}
    arguments = [argument for argument in get_args(kind_of) if argument is not type(None)]
    plain = arguments[0] if type(None) in get_args(kind_of) else kind_of
    several = get_origin(plain) is tuple
    if get_origin(plain) is Literal:
        fields |= {"kind": "choice", "choices": get_args(plain)}
    elif plain is bool:
        fields["kind"] = "switch"
    elif plain in (int, float):
        fields.setdefault("kind", "number")
    else:
        fields["kind"] = "text"
    return Option(name=name, several=several, default=default, **fields)


_TIME_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_seconds(text: str) -> float:
    """``90``, ``1.5``, ``500ms``, ``90s``, ``10m``, ``1h``, ``7d``. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *(ms|s|m|h|d|)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time; write 90, 500ms, 10m or 1h")
    return float(match[1]) * _TIME_UNITS[match[2]]


def parse_size(text: str) -> int:
    """``268435456``, ``256M``, ``1G`` (powers of 1024). Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,15}) *([KMG]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no size; write 268435456, 256M or 1G")
    return int(match[1]) * _SIZE_UNITS[match[2].upper()]


_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def parse(declared: Option, text: str) -> Any:
    """The value that a text stands for, of the environment for example. Raises ValueError that says what to write."""
    if declared.kind == "switch":
        value = _SWITCH.get(text.strip().lower())
        if value is None:
            raise ValueError(f"{text!r} is neither 1 nor 0")
        return value
    if declared.kind == "seconds":
        return parse_seconds(text)
    if declared.kind == "size":
        return parse_size(text)
    if declared.kind == "number":
        if re.fullmatch(r"[0-9]{1,18}", text.strip()) is None:
            raise ValueError(f"{text!r} is no number")
        return int(text)
    return text


def check(declared: Option, value: Any, label: str | None = None) -> Any:
    """The value of a number, time, size, choice or switch if it is one and in range.

    Texts of times and sizes are read; a ``timedelta`` is a time. Raises ConfigError that names ``label``, the option as the
    command line spells it unless given."""
    label = label or declared.flag
    if isinstance(value, str) and declared.kind in ("seconds", "size"):
        try:
            value = parse(declared, value)
        except ValueError as error:
            raise ConfigError(str(error), option=label) from None
    total = getattr(value, "total_seconds", None)
    if declared.kind == "seconds" and total is not None:
        value = total()
    if declared.kind == "switch":
        if not isinstance(value, bool):
            raise ConfigError(f"{value!r} is neither true nor false", option=label)
        return value
    if declared.kind == "choice":
        chosen = value.lower() if isinstance(value, str) else value
        return _one_of(chosen, value, declared.choices, label)
    if declared.kind == "text":
        return value
    whole = declared.kind != "seconds"
    assert declared.low is not None, declared.name
    assert declared.high is not None, declared.name
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigError(f"{value!r} is no {_NOUNS[declared.kind]}", option=label, advice=_range(declared))
    if not declared.low <= value <= declared.high:
        raise ConfigError(f"{value} is out of range", option=label, advice=_range(declared))
    return value if whole else float(value)


_NOUNS = {"number": "whole number", "seconds": "time", "size": "size"}


def _range(declared: Option) -> str:
    assert declared.low is not None
    assert declared.high is not None
    low, high = _number(declared.low, declared.kind), _number(declared.high, declared.kind)
    return f"choose from {low} to {high}{' seconds' if declared.kind == 'seconds' else ''}"


def _one_of(chosen: object, value: object, choices: tuple[str, ...], label: str) -> object:
    if chosen not in choices:
        raise ConfigError(f"{value!r} is not known", option=label, advice=f"choose from {', '.join(choices)}")
    return chosen


def _number(value: Any, kind: Kind) -> str:
    if kind == "size":
        for unit in ("G", "M", "K"):
            if value and value % _SIZE_UNITS[unit] == 0:
                return f"{value // _SIZE_UNITS[unit]:.0f}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)
