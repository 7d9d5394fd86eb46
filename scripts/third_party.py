"""What is linked into the extension, and the licences that it is passed on under.

Each wheel carries the texts: every crate's own, BoringSSL's, those of Rust's standard library, and those of the runtime
libraries that zig links.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

NOTICES = "THIRD_PARTY_LICENSES.txt"
STANDARD_LIBRARY = "RUST_STANDARD_LIBRARY.html"

_TEXT = re.compile(r"(un)?licen[cs]e|copying|copyright|notice", re.IGNORECASE)


class Component(NamedTuple):
    name: str
    version: str
    license: str
    """An SPDX expression."""
    texts: tuple[Path, ...]


def notices(components: list[Component]) -> dict[str, bytes]:
    """The files for a wheel's folder of licences, by name. Raises SystemExit if a text is missing."""
    sysroot = Path(_output("rustc", "--print", "sysroot").strip())
    library = sysroot / "share" / "doc" / "rust" / "COPYRIGHT-library.html"
    if not library.is_file():
        raise SystemExit(f"{library} is missing: it has the notices of Rust's standard library (rustup brings it)")
    return {NOTICES: _written(components).encode(), STANDARD_LIBRARY: library.read_bytes()}


def crates(triple: str) -> list[Component]:
    """The crates from the registry that are linked into the extension for that target: no build script and no macro is."""
    tree = _output(
        "cargo",
        "tree",
        "--locked",
        "--package=ech-workers-native",
        "--edges=normal,no-proc-macro",
        f"--target={triple}",
        "--prefix=none",
        "--format={p}",
    )
    linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line.strip()}
    metadata = json.loads(_output("cargo", "metadata", "--locked", "--format-version=1"))
    packages: list[dict[str, Any]] = [
        package
        for package in metadata["packages"]
        if package["source"] and (package["name"], f"v{package['version']}") in linked
    ]
    of_repository: dict[str, tuple[Path, ...]] = {}
    for package in packages:
        if own := _texts(package):
            of_repository.setdefault(package["repository"] or "", own)
    found = []
    for package in packages:
        # A crate that brings no text has that of the repository it comes from.
        texts = _texts(package) or of_repository.get(package["repository"] or "?", ())
        if not texts or not package["license"]:
            raise SystemExit(f"the crate {package['name']} {package['version']} has no text of its licence")
        found.append(Component(package["name"], package["version"], package["license"], texts))
    return sorted(found)


def boringssl() -> Component:
    """BoringSSL by what vendor/boringssl says of itself."""
    source = (ROOT / "vendor" / "boringssl" / "src" / "lib.rs").read_text("utf-8")
    found = re.search(r'REVISION: &str = "BoringSSL (\S+)', source)
    assert found is not None
    # One tree: the name says which (backend/bssl_backend.py).
    configured = re.search(
        r'^BORING_BSSL_SOURCE_PATH = \{ value = "([^"]+)"', (ROOT / ".cargo" / "config.toml").read_text("utf-8"), re.M
    )
    assert configured is not None
    return Component("BoringSSL", found[1], "Apache-2.0", (ROOT / configured[1] / "LICENSE",))


def runtimes() -> list[Component]:
    """What zig links in place of a compiler's runtime libraries."""
    import ziglang

    zig = Path(ziglang.__file__).parent
    version = _output(str(zig / "zig"), "version").strip()
    llvm = [
        Component(
            f"LLVM's {name}, as in zig", version, "Apache-2.0 WITH LLVM-exception", (zig / folder / "LICENSE.TXT",)
        )
        for name, folder in (
            ("libc++", "lib/libcxx"),
            ("libc++abi", "lib/libcxxabi"),
            ("libunwind", "lib/libunwind"),
        )
    ]
    return [*llvm, Component("zig's compiler-rt", version, "MIT", (zig / "LICENSE",))]


def unnamed(extension: bytes, written: str) -> list[str]:
    """The crates whose paths are in the extension (panics name their place), but which the notices do not name."""
    inside = {
        (name.decode(), version.decode())
        for name, version in re.findall(rb"registry/src/[\w.-]+/([a-z][\w-]*?)-(\d+\.\d+\.\d+[\w.+-]*)/", extension)
    }
    return [f"{name} {version}" for name, version in sorted(inside) if f"\n{name} {version} (" not in written]


def _texts(package: dict[str, Any]) -> tuple[Path, ...]:
    folder = Path(package["manifest_path"]).parent
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and _TEXT.match(path.name)]
    if package["license_file"]:
        found.append(folder / package["license_file"])
    return tuple(dict.fromkeys(found))


def _written(components: list[Component]) -> str:
    """All components, then each text once, with whom it is of."""
    numbers: dict[str, int] = {}
    holders: dict[str, list[str]] = {}
    lines = []
    for component in components:
        called = f"{component.name} {component.version}"
        used = []
        for path in component.texts:
            text = "\n".join(line.rstrip() for line in path.read_text("utf-8", errors="replace").splitlines()).strip()
            used.append(numbers.setdefault(text, len(numbers) + 1))
            holders.setdefault(text, []).append(called)
        lines.append(f"{called} ({component.license}): {', '.join(str(number) for number in dict.fromkeys(used))}")
    head = (
        "The extension module ech_workers._native contains what is listed here. The number is that of the text below.\n"
        f"Rust's standard library is in it too: its notices are in {STANDARD_LIBRARY}.\n"
    )
    rule = "=" * 100
    bodies = [f"{rule}\n{number}: {', '.join(holders[text])}\n{rule}\n\n{text}\n" for text, number in numbers.items()]
    return "\n".join([head, *lines, "", *bodies])


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
