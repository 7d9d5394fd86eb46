"""The page that everybody sees: that of some small undertaking, never the same twice."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

__all__ = ["write"]


@dataclass(frozen=True)
class _Trade:
    what: str
    surnames: tuple[str, ...]
    claims: tuple[str, ...]
    offers: tuple[str, ...]
    remarks: tuple[str, ...]


_SURNAMES = (
    *("Abbott", "Barlow", "Castell", "Dahl", "Ekberg", "Farrow", "Grant", "Holm", "Ivers", "Jansen", "Keller", "Lind"),
    *("Marsh", "Nolan", "Oakley", "Perrin", "Quist", "Rowe", "Sander", "Thorn", "Unger", "Vance", "Webb", "Yates"),
)
_PLACES = (
    *("Ashby", "Brindle", "Colne", "Dunmore", "Elmstead", "Fairlie", "Glenham", "Harwick", "Kelsey", "Larkhill"),
    *("Milford", "Norwood", "Otley", "Penrith", "Rowan Bay", "Selby", "Thornton", "Upwell", "Westbrook", "Yarrow"),
)
_TRADES = (
    _Trade(
        "Bakery",
        _SURNAMES,
        ("Bread and cakes, baked before you are up.", "Slow dough, a hot oven, and patience.", "A bakery for the street we live in."),
        ("Country loaf", "Rye with caraway", "Morning rolls", "Apple slices", "Almond croissants", "Seed crackers", "Plum cake"),
        ("Large orders by noon of the day before.", "We are closed on Mondays.", "Yesterday's bread is half the price.", "Flour from the mill down the road."),
    ),
    _Trade(
        "Bicycle repairs",
        _SURNAMES,
        ("Your bicycle, ready tomorrow.", "Repairs while you have a coffee.", "We mend what others replace."),
        ("Brakes and gears", "Wheels trued", "Winter check", "Child seats fitted", "Lights", "Second-hand frames", "Tyres of all sizes"),
        ("No appointment is needed for a puncture.", "We collect within the town.", "Spare parts for old hubs on request.", "Ask for a loan bicycle."),
    ),
    _Trade(
        "Garden design",
        _SURNAMES,
        ("Gardens that look after themselves.", "Small gardens, well used.", "Plants that belong where they grow."),
        ("Planting plans", "Dry stone walls", "Ponds", "Pruning of fruit trees", "Meadows", "Balconies", "Hedges from seedlings"),
        ("The first visit is free.", "We plant from October to March.", "No peat, no sprays.", "Photographs of finished gardens on request."),
    ),
    _Trade(
        "Photography",
        _SURNAMES,
        ("Portraits in daylight.", "Pictures of people at work.", "Quiet photographs of loud days."),
        ("Portraits", "Weddings", "Buildings", "Products", "Prints on cotton paper", "Restoration of old prints", "Workshops"),
        ("The studio is on the second floor.", "Prints take two weeks.", "Travel within the county is included.", "Vouchers are good for three years."),
    ),
    _Trade(
        "Choir",
        _PLACES,
        ("We sing on Thursdays.", "Sixty voices and one piano.", "Old songs, new songs, and tea."),
        ("Spring concert", "Carols", "Singing weekend", "Summer serenade", "Open rehearsal", "Children's choir", "Recordings"),
        ("New members are welcome, altos above all.", "Nobody needs to read music.", "Rehearsals are in the school hall.", "Scores are provided."),
    ),
    _Trade(
        "Walking club",
        _PLACES,
        ("A walk every second Sunday.", "Ten miles, then cake.", "Paths that are not on the signposts."),
        ("Riverside walk", "Ridge walk", "Night walk in June", "Map reading for beginners", "Family walk", "Winter walk", "Bird walk"),
        ("Bring something to drink and good shoes.", "Dogs on a lead are welcome.", "We meet at the station.", "Walks take place in any weather."),
    ),
    _Trade(
        "Pottery",
        _SURNAMES,
        ("Stoneware for every day.", "Bowls, cups and jugs from one wheel.", "Clay, ash and fire."),
        ("Cups", "Bowls", "Plates", "Jugs", "Tiles", "Evening courses", "Open kiln days"),
        ("Everything goes into the dishwasher.", "Courses have six places.", "The next firing is at the end of the month.", "Seconds are on the shelf by the door."),
    ),
    _Trade(
        "Language school",
        _PLACES,
        ("Small groups, much talking.", "A language in a year of evenings.", "Lessons for people with little time."),
        ("Spanish", "Italian", "German", "Portuguese", "Conversation evenings", "Holiday courses", "Exam preparation"),
        ("The first evening is free.", "Groups have at most eight people.", "Courses begin in January and September.", "Private lessons on request."),
    ),
)  # fmt: skip
_FONTS = (
    "Georgia, serif",
    "system-ui, sans-serif",
    "'Trebuchet MS', sans-serif",
    "'Palatino Linotype', Palatino, serif",
    "Verdana, sans-serif",
    "'Gill Sans', Calibri, sans-serif",
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def write(chance: random.Random) -> str:
    """One HTML page, whole by itself."""
    trade = chance.choice(_TRADES)
    name = _name(trade, chance)
    claim = chance.choice(trade.claims)
    offers = chance.sample(trade.offers, chance.randint(3, 6))
    remarks = chance.sample(trade.remarks, chance.randint(1, 3))
    blocks = [_offers(offers, chance), *(f"<p>{remark}</p>" for remark in remarks)]
    if chance.random() < 0.7:
        blocks.append(_hours(chance))
    chance.shuffle(blocks)
    body = "\n".join(blocks)
    tag, place = chance.choice(("main", "div", "section", "article")), chance.choice(("header", "div"))
    year = chance.randint(1994, 2022)
    foot = chance.choice((f"Since {year}", f"&copy; {name}", f"{name}, {chance.choice(_PLACES)}", f"Founded in {year}"))
    end = chance.choice(("footer", "small"))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>\n'
        f"<style>{_style(tag, chance)}</style>\n</head>\n<body>\n"
        f"<{place}>\n<h1>{name}</h1>\n<p>{claim}</p>\n</{place}>\n<{tag}>\n{body}\n</{tag}>\n"
        f"<{end}>{foot}</{end}>\n</body>\n</html>\n"
    )


def _name(trade: _Trade, chance: random.Random) -> str:
    of = chance.choice(trade.surnames)
    if trade.surnames is _PLACES:
        return chance.choice((f"{of} {trade.what}", f"{trade.what} of {of}", f"The {of} {trade.what}"))
    other = chance.choice([each for each in trade.surnames if each != of])
    what = trade.what.lower()
    return chance.choice(
        (
            f"{of} {trade.what}",
            f"{of} &amp; {other}, {what}",
            f"{of} {chance.choice(('Bros.', 'and Daughter'))}, {what}",
        )
    )


def _offers(offers: list[str], chance: random.Random) -> str:
    title = chance.choice(("What we do", "This season", "On offer", "For you", "At a glance", "Our work"))
    shape = chance.choice(("ul", "ol", "p", "div"))
    if shape in ("ul", "ol"):
        inner = "".join(f"<li>{offer}</li>" for offer in offers)
        return f"<h2>{title}</h2>\n<{shape}>{inner}</{shape}>"
    if shape == "p":
        return f"<h2>{title}</h2>\n<p>{', '.join(offers)}.</p>"
    return f"<h2>{title}</h2>\n" + "\n".join(f"<div>{offer}</div>" for offer in offers)


def _hours(chance: random.Random) -> str:
    first, last = sorted(chance.sample(range(len(_DAYS)), 2))
    opens, closes = chance.randint(7, 11), chance.randint(16, 20)
    title = chance.choice(("Hours", "Open", "Opening times", "When"))
    return f"<h3>{title}</h3>\n<p>{_DAYS[first]} to {_DAYS[last]}, {opens}:{chance.choice(('00', '30'))} to {closes}:00</p>"


def _style(tag: str, chance: random.Random) -> str:
    hue = chance.random()
    ink, paper, accent = (
        _colour(hue, 0.2, 0.25),
        _colour((hue + 0.5) % 1, 0.3, chance.uniform(0.93, 0.98)),
        _colour((hue + chance.uniform(0.1, 0.4)) % 1, 0.5, 0.4),
    )
    margin, width, padding = chance.choice(("0 auto", "2rem auto")), chance.randint(34, 60), chance.randint(1, 3)
    box = f"margin:{margin};max-width:{width}rem;padding:{padding}rem;line-height:1.{chance.randint(4, 7)}"
    rules = [
        f"body{{font-family:{chance.choice(_FONTS)};color:{ink};background:{paper};{box}}}",
        f"h1{{color:{accent};font-weight:{chance.choice(('400', '600', '700'))}}}",
        f"h2{{border-bottom:{chance.randint(1, 3)}px solid {accent};padding-bottom:.{chance.randint(1, 4)}em}}",
        f"{tag}{{margin-top:{chance.randint(1, 4)}rem}}",
    ]
    chance.shuffle(rules)
    return "".join(rules)


def _colour(hue: float, saturation: float, lightness: float) -> str:
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, saturation))
    return f"#{red:02x}{green:02x}{blue:02x}"
