"""Names that say nothing: of files, identifiers, variables, hosts and paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

_VERBS = (
    *("apply", "attach", "balance", "collect", "compose", "convert", "derive", "emit", "enter", "expand", "follow"),
    *(
        "gather",
        "handle",
        "hold",
        "iterate",
        "join",
        "keep",
        "lead",
        "link",
        "load",
        "make",
        "match",
        "measure",
        "merge",
    ),
    *("move", "order", "pick", "place", "prepare", "present", "pull", "push", "queue", "reduce", "render", "resolve"),
    *("run", "scan", "select", "settle", "shape", "sort", "spread", "step", "store", "supply", "take", "trace", "turn"),
)
_NOUNS = (
    *("agent", "area", "batch", "block", "board", "border", "branch", "bucket", "case", "cell", "chain", "chapter"),
    *("circle", "column", "corner", "course", "cycle", "detail", "draft", "edge", "entry", "event", "extent", "field"),
    *("figure", "frame", "garden", "grain", "grid", "group", "handle", "index", "item", "journal", "label", "layer"),
    *("leaf", "ledger", "level", "line", "list", "margin", "mark", "matter", "meter", "model", "moment", "note"),
    *(
        "number",
        "object",
        "outline",
        "panel",
        "part",
        "passage",
        "pattern",
        "period",
        "phase",
        "piece",
        "place",
        "plan",
    ),
    *("point", "portion", "profile", "range", "record", "region", "result", "ring", "row", "sample", "scene", "scope"),
    *("section", "segment", "series", "shape", "sheet", "shelf", "side", "signal", "slot", "source", "span", "stage"),
    *("state", "station", "step", "strand", "stretch", "summary", "surface", "table", "tile", "topic", "track", "tray"),
    *("unit", "value", "vessel", "view", "volume", "wave", "window", "yard", "zone"),
)
_ADJECTIVES = (
    *("amber", "autumn", "brave", "bright", "calm", "clear", "cool", "coral", "crisp", "deep", "early", "eastern"),
    *("fair", "fine", "fresh", "gentle", "golden", "green", "happy", "honest", "humble", "kind", "late", "light"),
    *("little", "lively", "lucky", "mellow", "mild", "misty", "modest", "north", "olive", "plain", "proud", "quiet"),
    *("rapid", "round", "rustic", "shy", "silver", "simple", "small", "soft", "spring", "steady", "still", "summer"),
    *("sunny", "sweet", "tall", "tidy", "warm", "western", "wide", "wild", "winter", "wise", "young"),
)
_THINGS = (
    *("acorn", "anchor", "apple", "barley", "basket", "beacon", "birch", "bread", "brook", "candle", "canvas", "cedar"),
    *("cherry", "clover", "cottage", "creek", "dune", "falcon", "fern", "field", "finch", "forest", "fox", "garden"),
    *("glade", "harbor", "hazel", "heron", "hill", "island", "ivy", "kettle", "lake", "lantern", "lemon", "lily"),
    *("maple", "marsh", "meadow", "mill", "moss", "oak", "orchard", "otter", "pebble", "pine", "plum", "pond"),
    *("quill", "raven", "reed", "ridge", "river", "robin", "rose", "sail", "shore", "sparrow", "stone", "thistle"),
    *("thyme", "trail", "valley", "violet", "walnut", "willow", "wren"),
)
_SECTIONS = (
    "api",
    "app",
    "assets",
    "feed",
    "files",
    "live",
    "media",
    "news",
    "public",
    "shop",
    "site",
    "static",
    "updates",
)


class Vocabulary:
    """Hands out each name once."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._used: set[str] = set()

    def avoid(self, names: Iterable[str]) -> None:
        """These are taken."""
        self._used.update(names)

    def host_label(self) -> str:
        label = f"{self.chance.choice(_ADJECTIVES)}-{self.chance.choice(_THINGS)}"
        return f"{label}-{self.chance.randrange(10, 1000)}" if self.chance.random() < 0.5 else label

    def path(self) -> str:
        """Not to be guessed: a scanner without the path sees the page alone."""
        tail = "".join(self.chance.choices("abcdefghijkmnpqrstuvwxyz23456789", k=self.chance.randrange(6, 11)))
        return f"/{self.chance.choice(_SECTIONS)}/{self.chance.choice(_THINGS)}-{tail}"

    def file(self) -> str:
        return self._once(lambda: self.chance.choice(_NOUNS))

    def function(self) -> str:
        return self._once(
            lambda: self.chance.choice(_VERBS) + self._capital() + (self._capital() if self._rarely() else "")
        )

    def type(self) -> str:
        return self._once(lambda: self._capital() + self._capital())

    def constant(self) -> str:
        return self._once(lambda: f"{self.chance.choice(_NOUNS)}_{self.chance.choice(_NOUNS)}".upper())

    def member(self) -> str:
        return self._once(lambda: self.chance.choice(_NOUNS) + self._capital())

    def variables(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self.constant() for name in names}

    def _capital(self) -> str:
        return self.chance.choice(_NOUNS).capitalize()

    def _rarely(self) -> bool:
        return self.chance.random() < 0.3

    def _once(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if name not in self._used:
                self._used.add(name)
                return name
