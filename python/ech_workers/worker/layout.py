"""The template's modules in another layout: other files, other names, another order. What the code does stays the same."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from ech_workers.worker.words import Vocabulary

__all__ = ["VARIABLES", "Layout", "rename"]

VARIABLES = (
    *("TOKEN", "ENTRY_PATH", "RELAY", "RELAY_TOKEN", "MULTIPLEXED", "SOCKET_LIMIT", "WINDOW_KIB", "UPLOAD_MIB"),
    *("CONNECT_SECONDS", "RESOLVER", "PLATFORM_PREFIXES", "PRIVATE_PREFIXES"),
)
"""Of the deployment: the members of the interface Variables in the template's settings."""

_MAIN = "index"
_DECLARATIONS = "html.d.ts"
_PAGE = "./page.html"
_LEAST_FILES, _MOST_FILES = 5, 12

_IMPORT = re.compile(r'^import (type )?(?:\{([^}]*)\}|(\w+)) from "([^"]+)";\n', re.MULTILINE)
_DECLARATION = re.compile(r"^(?:export )?(?:async )?(function|class|interface|const|type) (\w+)", re.MULTILINE)
_MEMBER = re.compile(r"^  (?:readonly |private |get |async )*(#?)([a-z]\w*[A-Z]\w*)\??[:(]", re.MULTILINE)
# Members that the platform names.
_PLATFORM = {"webSocket", "bufferedAmount", "binaryType"}


def rename(text: str, names: Mapping[str, str]) -> str:
    """Replaces whole words."""
    return re.sub(r"[\w$]+", lambda word: names.get(word[0], word[0]), text)


@dataclass
class _Module:
    """A file of the template, taken apart."""

    comment: str
    imports: list[tuple[str, str]]
    """Imported name, with `type ` before it if it is one, and where from."""
    parts: list[str]
    """Top-level declarations, each with the comment before it."""

    @classmethod
    def parse(cls, text: str) -> _Module:
        imports = []
        for only_types, names, default, origin in _IMPORT.findall(text):
            if default:
                imports.append((f"default {default}", origin))
            for name in filter(None, (each.strip() for each in names.split(","))):
                imports.append((f"type {name}" if only_types else name, origin))
        body = _IMPORT.sub("", text)
        comment = "".join(re.findall(r"\A(?://.*\n)+", body))
        parts = re.split(r"\n\n(?=[^\s}])", body[len(comment) :].strip("\n"))
        return cls(comment, imports, [part.strip("\n") for part in parts if part.strip()])


class Layout:
    """The code of one project."""

    def __init__(self, modules: Mapping[str, str], vocabulary: Vocabulary, variables: Mapping[str, str]) -> None:
        """modules: file name to text of the template's modules."""
        chance = vocabulary.chance
        vocabulary.avoid(word for text in modules.values() for word in re.findall(r"\w+", text))
        names = dict(variables) | _new_names("\n".join(modules.values()), vocabulary)
        parsed = {
            name.removesuffix(".ts"): _Module.parse(text) for name, text in modules.items() if name != _DECLARATIONS
        }
        self.page_file = f"{vocabulary.file()}.html"

        # The runtime takes every export of the main module for a handler: it has none but its own.
        order = sorted(parsed.keys() - {_MAIN})
        chance.shuffle(order)
        count = chance.randint(_LEAST_FILES, min(_MOST_FILES, len(order)))
        cuts = [0, *sorted(chance.sample(range(1, len(order)), count - 1)), len(order)]
        groups = [[_MAIN], *(order[start:end] for start, end in itertools.pairwise(cuts))]
        files = {tuple(group): vocabulary.file() for group in groups}
        where = {module: file for group, file in files.items() for module in group}
        self.main = f"{where[_MAIN]}.ts"
        self.files = {f"{vocabulary.file()}.d.ts": modules[_DECLARATIONS]}
        for group, file in files.items():
            self.files[f"{file}.ts"] = rename(self._file([parsed[name] for name in group], file, where, chance), names)

    def _file(self, group: list[_Module], file: str, where: Mapping[str, str], chance: random.Random) -> str:
        found: dict[str, dict[str, bool]] = {}
        for module in group:
            for name, origin in module.imports:
                here = f"./{self.page_file}" if origin == _PAGE else origin
                if origin.startswith("./") and origin != _PAGE:
                    if (here := where[origin[2:]]) == file:
                        continue
                    here = f"./{here}"
                bare = name.removeprefix("type ")
                among = found.setdefault(here, {})
                # Once as a value is enough.
                among[bare] = among.get(bare, True) and name != bare
        lines = [_import_line(origin, found[origin]) for origin in sorted(found)]
        fixed = [part for module in group for part in module.parts if _is_fixed(part)]
        free = [part for module in group for part in module.parts if not _is_fixed(part)]
        chance.shuffle(free)
        comments = "".join(module.comment for module in group)
        return comments + "\n".join(lines) + ("\n\n" if lines else "") + "\n\n".join([*fixed, *free]) + "\n"


def _is_fixed(part: str) -> bool:
    """Constants come before what needs them when the module is loaded."""
    found = _DECLARATION.search(part)
    return found is not None and found[1] == "const"


def _import_line(origin: str, names: Mapping[str, bool]) -> str:
    defaults = [name.removeprefix("default ") for name in names if name.startswith("default ")]
    if defaults:
        return f'import {defaults[0]} from "{origin}";'
    listed = ", ".join(f"type {name}" if only_type else name for name, only_type in sorted(names.items()))
    return f'import {{ {listed} }} from "{origin}";'


def _new_names(text: str, vocabulary: Vocabulary) -> dict[str, str]:
    """A new name for each top-level declaration and each member of two words."""
    names = {}
    for kind, name in _DECLARATION.findall(text):
        if name not in names:
            if kind == "const" and name.isupper():
                names[name] = vocabulary.constant()
            elif kind in ("class", "interface", "type"):
                names[name] = vocabulary.type()
            else:
                names[name] = vocabulary.function()
    for _, name in _MEMBER.findall(text):
        if name not in names and name not in _PLATFORM:
            names[name] = vocabulary.member()
    return names
