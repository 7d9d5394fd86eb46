"""Stand-ins for the classes of the native module, generated from its stub: what is not in the stub cannot be made.

An event has the stub's properties, a plan the stub's keyword arguments with their defaults; both refuse anything else.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import ech_workers

STUB = Path(ech_workers.__file__).with_name("_native.pyi")

# What a property is that a test does not say; by the property's type as the stub writes it.
_DEFAULTS: dict[str, Any] = {"str": "", "int": 0, "float": 0.0, "bool": False, "bytes": b""}


class Made:
    """What every stand-in has in common."""

    _fields: dict[str, Any]

    def __init__(self, **fields: Any) -> None:
        unknown = fields.keys() - self._fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        missing = [name for name, value in self._fields.items() if value is ... and name not in fields]
        if missing:
            raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")
        self.fields = {**self._fields, **fields}

    def __getattr__(self, name: str) -> Any:
        if name == "fields" or name not in self.fields:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self.fields[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.fields.items())})"


@functools.cache
def _stub() -> list[ast.stmt]:
    # The interpreter may be older than the stub's syntax.
    return ast.parse(re.sub(r"(?m)^type (?=\w+ = )", "", STUB.read_text(encoding="utf-8"))).body


@functools.cache
def alternatives(name: str) -> tuple[str, ...]:
    """The classes that the stub's type of this name is one of."""
    found = next(node for node in _stub() if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name)
    return tuple(part.id for part in ast.walk(found.value) if isinstance(part, ast.Name))


@functools.cache
def stand_in(name: str) -> Any:
    """The stand-in for the stub's class of this name."""
    found = next(node for node in _stub() if isinstance(node, ast.ClassDef) and node.name == name)
    functions = [node for node in found.body if isinstance(node, ast.FunctionDef)]
    made = next((node for node in functions if node.name == "__new__"), None)
    return type(name, (Made,), {"_fields": _arguments(made) if made is not None else _properties(functions)})


def _arguments(made: ast.FunctionDef) -> dict[str, Any]:
    return {
        argument.arg: ... if default is None else ast.literal_eval(default)
        for argument, default in zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True)
    }


def _properties(functions: list[ast.FunctionDef]) -> dict[str, Any]:
    return {function.name: _default(function.returns) for function in functions if function.decorator_list}


def _default(annotation: ast.expr | None) -> Any:
    assert annotation is not None
    text = ast.unparse(annotation)
    if text in _DEFAULTS:
        return _DEFAULTS[text]
    if text.endswith("| None"):
        return None
    if text.startswith("Literal["):
        choices = annotation.slice  # type: ignore[attr-defined]
        first = choices.elts[0] if isinstance(choices, ast.Tuple) else choices
        return ast.literal_eval(first)
    if text.startswith("tuple["):
        return ()
    # An object of its own (a Failure) has no default.
    return ...
