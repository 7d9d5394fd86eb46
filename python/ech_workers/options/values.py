"""What was given for the options of a schema, asked for by kind."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ech_workers import files
from ech_workers.errors import ConfigError
from ech_workers.options.schema import Schema, check, options_of
from ech_workers.options.sources import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

__all__ = ["Values"]

# What Python programs give for an address, a port or a path.
_ONE = (str, int, Path, ipaddress.IPv4Address, ipaddress.IPv6Address)


class Values:
    """What was given for the options of a schema; what was not has its default."""

    def __init__(self, schema: Schema, given: Mapping[str, Any]) -> None:
        self.declared = options_of(schema)
        for name in given:
            if name not in self.declared:
                near = nearest(name, self.declared)
                raise TypeError(f"there is no option {name!r}{f'; did you mean {near!r}?' if near else ''}")
        self.given = given

    def checked(self, name: str) -> Any:
        declared = self.declared[name]
        return check(declared, self.given.get(name, declared.default))

    def tuning(self, schema: type[msgspec.Struct]) -> dict[str, Any]:
        """The options that need no more than a look at their range."""
        return {name: self.checked(name) for name in schema.__struct_fields__}

    def text(self, name: str) -> str | None:
        value = self.given.get(name, self.declared[name].default)
        if value is None or isinstance(value, str):
            return value
        raise ConfigError(f"expected a text, not {type(value).__name__}", option=self.declared[name].flag)

    def path(self, name: str) -> Path | None:
        value = self.given.get(name, self.declared[name].default)
        if value is not None and not isinstance(value, str | Path):
            raise ConfigError(f"expected a path, not {type(value).__name__}", option=self.declared[name].flag)
        return files.expand(value, self.declared[name].flag) if value else None

    def several(self, name: str) -> tuple[str, ...]:
        value = self.given.get(name, self.declared[name].default)
        if value is None or value == "":
            return ()
        values = (value,) if isinstance(value, _ONE) else value
        if not isinstance(values, Iterable) or not all(isinstance(one, _ONE) for one in values):
            raise ConfigError(f"expected a text or several, not {value!r}", option=self.declared[name].flag)
        return tuple(str(one) for one in values)
