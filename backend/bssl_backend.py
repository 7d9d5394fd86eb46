"""PEP 517 backend: maturin, after putting libclang and BoringSSL's source where .cargo/config.toml points.

BoringSSL's bindings are made by bindgen, which needs libclang; the `libclang` wheel (build-system.requires) brings it, so nobody has to install it by hand. It is copied
to one stable place in the tree: cargo rebuilds bindgen's users, and with them BoringSSL (minutes), whenever LIBCLANG_PATH changes, and a build environment's path is
new at every install.

BoringSSL's source is that of the locked rama-boring-sys with its patches and those of vendor/boringssl/patches. The crate's build script takes such a tree from
BORING_BSSL_SOURCE_PATH. Its place too is stable, and named for what is in it: a tree that is there is whole and right, and another patch is another path, which is all
that makes cargo build BoringSSL anew.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import maturin
from maturin import *

# Or maturin warns that another backend than itself is set: this one, which calls it.
os.environ["MATURIN_NO_MISSING_BUILD_BACKEND_WARNING"] = "1"

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "vendor" / "boringssl" / "patches"
CRATE = "rama-boring-sys"


def seed() -> None:
    """Everything that cargo does not bring itself."""
    seed_libclang()
    seed_boringssl()


def seed_libclang() -> None:
    """Copies the wheel's library into .libclang/, unless it is there or LIBCLANG_PATH names another one."""
    if os.environ.get("LIBCLANG_PATH"):
        return
    import clang  # the libclang wheel

    # .so, .dylib or .dll
    source = next((Path(clang.__file__).parent / "native").glob("libclang.*"))
    target = ROOT / ".libclang" / source.name
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(exist_ok=True)
    # Two builds may run at once: each writes its own file and moves it into place.
    partial = target.with_suffix(f".{os.getpid()}")
    shutil.copy2(source, partial)
    partial.replace(target)


def seed_boringssl() -> None:
    """Makes the tree that .cargo/config.toml names, unless it is there or BORING_BSSL_SOURCE_PATH names another one."""
    if os.environ.get("BORING_BSSL_SOURCE_PATH"):
        return
    own = sorted(PATCHES.glob("*.patch"))
    named = str(
        tomllib.loads((ROOT / ".cargo/config.toml").read_text("utf-8"))["env"]["BORING_BSSL_SOURCE_PATH"]["value"]
    )
    packages = tomllib.loads((ROOT / "Cargo.lock").read_text("utf-8"))["package"]
    version = next(package["version"] for package in packages if package["name"] == CRATE)
    digest = hashlib.sha256(b"".join(patch.read_bytes() for patch in own)).hexdigest()
    right = f".boringssl/{version}-{digest[:8]}"
    if named != right:
        raise SystemExit(
            f".cargo/config.toml: BORING_BSSL_SOURCE_PATH is {named}, but {CRATE} or a patch has changed: make it {right}"
        )
    target = ROOT / named
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    crate = unpacked_crate()
    # Two builds may run at once: each makes its own tree, and one of them moves it into place.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / "boringssl"
        shutil.copytree(crate / "deps" / "boringssl", partial)
        for patch in [*patches_of(crate), *own]:
            apply(patch, partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise


def unpacked_crate() -> Path:
    """Where cargo has unpacked (or vendored) the locked crate."""
    cargo = os.environ.get("CARGO", "cargo")
    version = subprocess.run([cargo, "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout
    host = version.partition("\nhost: ")[2].split("\n")[0]
    command = [cargo, "metadata", "--locked", "--format-version", "1", "--filter-platform", host]
    metadata = json.loads(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout)
    return next(Path(package["manifest_path"]).parent for package in metadata["packages"] if package["name"] == CRATE)


def patches_of(crate: Path) -> list[Path]:
    """The crate's own patches, in the order in which its build script applies them."""
    names = re.findall(r'\bapply_patch\(config, "([^"]+)"\)', (crate / "build" / "main.rs").read_text("utf-8"))
    folder = crate / "patches"
    if sorted(names) != sorted(patch.name for patch in folder.glob("*.patch")):
        raise SystemExit(
            f"{crate}: the build script applies {names}, which are not all that is in patches/: see vendor/boringssl/README.md"
        )
    return [folder / name for name in names]


def apply(patch: Path, tree: Path) -> None:
    """`git apply`, as the crate's build script does."""
    touched = [tree / name for name in re.findall(r"^\+\+\+ b/(\S+)", patch.read_text("utf-8"), re.MULTILINE)]
    before = [path.exists() and path.read_bytes() for path in touched]
    # A repository around the tree, such as this one, would make git skip files that it ignores, without a word.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(tree.parent)
    result = subprocess.run(
        ["git", "apply", "--whitespace=fix", patch], cwd=tree, env=environment, stderr=subprocess.PIPE, text=True
    )
    changed = all(path.read_bytes() != old for path, old in zip(touched, before, strict=True))
    if result.returncode or not touched or not changed:
        raise SystemExit(f"{patch} does not apply to BoringSSL: {result.stderr.strip() or 'nothing was changed'}")


def build_wheel(*arguments: Any, **options: Any) -> str:
    seed()
    return str(maturin.build_wheel(*arguments, **options))


def build_editable(*arguments: Any, **options: Any) -> str:
    seed()
    return str(maturin.build_editable(*arguments, **options))


if __name__ == "__main__":
    seed()
