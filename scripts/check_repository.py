"""Looks through every tracked file for what must not be committed: secrets, paths of somebody's machine, merge leftovers, large files."""

import re
import subprocess
import sys
from pathlib import Path

MAX_BYTES = 1 << 20

FORBIDDEN = {
    # Spelled so that this file does not match itself.
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}"),
    "a cloud or forge token": re.compile(
        r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|xox[abp]-[A-Za-z0-9-]{20,})\b"
    ),
    "a path of somebody's home": re.compile(
        r"(?<![\w.$}])/(?:home|Users)/(?!user\b|runner\b)[a-z][\w.-]*/|(?<![\w.$}])/r[o]ot/"
    ),
    "a merge conflict": re.compile(r"^(<{7} |>{7} |={7}$)", re.MULTILINE),
    "unfinished work": re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X)\b"),
}


def tracked(root: Path) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, stdout=subprocess.PIPE).stdout
    return [root / name.decode() for name in names.split(b"\0") if name]


def complaints(path: Path, shown: str) -> list[str]:
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        return [f"{shown}: {len(content)} bytes, the limit is {MAX_BYTES}"]
    if b"\0" in content:
        return []
    text = content.decode("utf-8", errors="replace")
    found = []
    for what, pattern in FORBIDDEN.items():
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{shown}:{line}: {what}: {match.group(0).splitlines()[0]}")
    return found


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        print("not a git clone: nothing to look through")
        return 0
    found = [line for path in tracked(root) if path.is_file() for line in complaints(path, str(path.relative_to(root)))]
    print("\n".join(found) if found else "repository: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
