"""What a release is told with: `notes TAG` prints the changelog's section of a tag that fits the version; `checksums` writes dist/SHA256SUMS."""

import datetime
import hashlib
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def version() -> str:
    """The one place of the version: Cargo.toml. The wheel's and the module's follow it."""
    return str(tomllib.loads((ROOT / "Cargo.toml").read_text("utf-8"))["workspace"]["package"]["version"])


def notes(tag: str) -> str:
    """Raises SystemExit when the tag, the version and the changelog do not agree."""
    if tag != f"v{version()}":
        raise SystemExit(f"the tag {tag} is not v{version()}, the version in Cargo.toml")
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    found = [section for section in sections if section.split(",")[0].strip() == version()]
    if len(found) != 1:
        raise SystemExit(f"CHANGELOG.md has {len(found)} sections `## {version()}, DATE`")
    title, _, body = found[0].partition("\n")
    date = title.partition(",")[2].strip()
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        raise SystemExit(f"CHANGELOG.md: the date of {version()} is {date!r}, not YYYY-MM-DD") from None
    return body.strip()


def checksums() -> None:
    """In the form that `sha256sum --check` reads."""
    files = sorted(file for file in DIST.iterdir() if file.name.endswith((".whl", ".tar.gz")))
    if not files:
        raise SystemExit("there is nothing in dist/")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (DIST / "SHA256SUMS").write_text("".join(lines), "utf-8")


def main(arguments: list[str]) -> int:
    match arguments:
        case ["notes", tag]:
            print(notes(tag))
        case ["checksums"]:
            checksums()
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
