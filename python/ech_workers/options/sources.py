"""What was given, where, and what counts: default < file < environment < command line."""

from __future__ import annotations

import difflib
import os
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from ech_workers.errors import ConfigError
from ech_workers.options.schema import Option, Schema, options_of, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Given", "Layer", "Settings", "environment", "merge", "nearest", "variable"]


class Given(NamedTuple):
    """A value, and the place that gave it, as a message names it."""

    value: Any
    origin: str


Layer = dict[str, Given]
"""What one place gave, by the names of the options."""


class Settings(NamedTuple):
    """What counts, and the layers from the least to the greatest precedence that it came from."""

    given: Layer
    schema: Schema

    @property
    def values(self) -> dict[str, Any]:
        return {name: given.value for name, given in self.given.items()}

    def blame(self, error: ConfigError) -> ConfigError:
        """The error with the place that gave the option, where that is not the command line."""
        name = (error.option or "").removeprefix("--").replace("-", "_")
        given = self.given.get(name)
        if error.option is None or given is None or given.origin == error.option:
            return error
        return ConfigError(
            error.message.removeprefix(f"{error.option}: "),
            option=given.origin,
            code=error.code,
            detail=error.detail,
            advice=error.advice or "",
        )


def variable(prefix: str, name: str) -> str:
    """The environment variable of an option."""
    return prefix + name.upper()


def environment(
    schema: Schema, prefix: str, variables: Mapping[str, str] | None = None, *, names: Iterable[str] = ()
) -> Layer:
    """What the environment gives. Raises ConfigError that names the variable.

    A list is separated by spaces, where quotes keep a path with a space together as in a shell, or by lines. Quotes around
    the whole of a value, which some readers of env files leave there, are taken off. An empty variable is as good as none
    where it has no meaning."""
    variables = os.environ if variables is None else variables
    wanted = set(names) or set(options_of(schema))
    found: Layer = {}
    for name, declared in options_of(schema).items():
        origin = variable(prefix, name)
        text = variables.get(origin)
        if text is None or name not in wanted or (not text.strip() and name not in _MAY_BE_EMPTY):
            continue
        if any("\udc80" <= character <= "\udcff" for character in text):
            raise ConfigError("is not in the encoding of this system", option=origin)
        try:
            if declared.several:
                value: Any = _split(text)
            else:
                value = parse(declared, _unquoted(text))
        except ValueError as error:
            raise ConfigError(str(error), option=origin) from None
        found[name] = Given(value, origin)
    return found


# Empty is a value of these.
_MAY_BE_EMPTY = ("cache_dir", "control")


def _split(text: str) -> tuple[str, ...]:
    if "\n" in text.strip():
        return tuple(_unquoted(line.strip()) for line in text.splitlines() if line.strip())
    try:
        return tuple(shlex.split(text))
    except ValueError:
        raise ValueError("a quote is not closed") from None


def _unquoted(text: str) -> str:
    stripped = text.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        return stripped[1:-1]
    return text


def merge(schema: Schema, layers: Sequence[Layer]) -> Settings:
    """What counts of the layers, which come with the least precedence first.

    An option that is given takes back what excludes it in the layers below: a token on the command line replaces a token
    file from the environment. Two of them in one layer stay, and are refused later on."""
    declared = options_of(schema)
    counts: Layer = {}
    for layer in layers:
        for name in layer:
            for other in _replaced(declared.get(name)):
                counts.pop(other, None)
        counts |= layer
    return Settings(counts, schema)


def _replaced(declared: Option | None) -> tuple[str, ...]:
    return declared.replaces if declared is not None else ()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, 0.6)), None)
