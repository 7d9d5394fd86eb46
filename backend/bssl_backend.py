"""PEP 517 backend: maturin, after putting libclang where .cargo/config.toml points.

BoringSSL's bindings are made by bindgen, which needs libclang; the `libclang` wheel (build-system.requires) brings it, so nobody has to install it by hand. It is copied
to one stable place in the tree: cargo rebuilds bindgen's users, and with them BoringSSL (minutes), whenever LIBCLANG_PATH changes, and a build environment's path is
new at every install.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import maturin
from maturin import *

ROOT = Path(__file__).resolve().parent.parent


def seed() -> None:
    """Copies libclang.so into .libclang/, unless it is there or LIBCLANG_PATH names another one."""
    if os.environ.get("LIBCLANG_PATH"):
        return
    import clang  # the libclang wheel

    source = Path(clang.__file__).parent / "native" / "libclang.so"
    target = ROOT / ".libclang" / "libclang.so"
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(exist_ok=True)
    # Two builds may run at once: each writes its own file and moves it into place.
    partial = target.with_suffix(f".{os.getpid()}")
    shutil.copy2(source, partial)
    partial.replace(target)


def build_wheel(*arguments: Any, **options: Any) -> str:
    seed()
    return str(maturin.build_wheel(*arguments, **options))


def build_editable(*arguments: Any, **options: Any) -> str:
    seed()
    return str(maturin.build_editable(*arguments, **options))


if __name__ == "__main__":
    seed()
