"""Builds files of dist/ again, in a clone somewhere else, and compares them byte by byte: `make reproduce`.

    python scripts/reproduce.py [TRIPLE|sdist ...]

What `make wheels` has made of the last commit must come out the same wherever it is built. Without arguments it is the source
distribution and the wheel for x86_64 with glibc. The compiler cache is not used: it would hand over what the first build made.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from wheels import DIST, ROOT, TARGETS, output

DEFAULT = ("sdist", TARGETS[0].triple)
KEPT = ROOT / "target" / "reproduced"


def main(arguments: list[str]) -> int:
    if output("git", "status", "--porcelain"):
        print("reproduce: there are changes that are not committed, and the clone would not have them")
        return 2
    with tempfile.TemporaryDirectory(prefix="reproduced-") as folder:
        # Longer than most places that people build in: a path that is left in a file changes its length too.
        clone = Path(folder) / "another-place-of-another-length" / "ech-workers"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = {**os.environ, "CCACHE_DISABLE": "1", "RUSTC_WRAPPER": ""}
        for script in (["backend/bssl_backend.py"], ["scripts/wheels.py", *(arguments or DEFAULT)]):
            if subprocess.run([sys.executable, *script], cwd=clone, env=environment).returncode:
                return 1
        made = sorted((clone / "dist").iterdir())
        complaints = [complaint for file in made for complaint in compare(file, DIST / file.name)]
        if complaints:
            shutil.rmtree(KEPT, ignore_errors=True)
            shutil.copytree(clone / "dist", KEPT)
            complaints.append(f"what came out is in {KEPT.relative_to(ROOT)}")
    print("\n".join(complaints) or f"reproduce: {', '.join(file.name for file in made)} came out the same")
    return 1 if complaints else 0


def compare(again: Path, first: Path) -> list[str]:
    """What differs, by the names of an archive's members."""
    if not first.is_file():
        return [f"{first.name} is not in dist/: `make wheels` makes it"]
    if again.read_bytes() == first.read_bytes():
        return []
    one, other = members(first), members(again)
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return [f"{first.name} differs in {name}" for name in names] or [f"{first.name} differs in how it is packed"]


def members(archive: Path) -> dict[str, tuple[object, bytes]]:
    """Each member's time and content, in the order in which they are packed."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {
                entry.filename: ((entry.date_time, entry.external_attr), wheel.read(entry))
                for entry in wheel.infolist()
            }
    with tarfile.open(archive) as packed:
        found: dict[str, tuple[object, bytes]] = {}
        for entry in packed:
            content = packed.extractfile(entry)
            found[entry.name] = ((entry.mtime, entry.mode, entry.uid, entry.uname), content.read() if content else b"")
        return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
