"""The build backend's BoringSSL tree: patched as a whole or not there at all."""

from __future__ import annotations

import importlib.util
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

pytest.importorskip("maturin")

VERSION = "1.2.3"
SOURCE = "one\ntwo\nthree\n"
# The makers' patch first, ours on top of it.
THEIRS = "diff --git a/ssl/a.cc b/ssl/a.cc\n--- a/ssl/a.cc\n+++ b/ssl/a.cc\n@@ -1,2 +1,2 @@\n-one\n+eins\n two\n"
OURS = "diff --git a/ssl/a.cc b/ssl/a.cc\n--- a/ssl/a.cc\n+++ b/ssl/a.cc\n@@ -1,3 +1,3 @@\n eins\n-two\n+zwei\n three\n"


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend in a project of its own, which is a git repository that ignores the tree, as this one is."""
    path = Path(__file__).parents[2] / "backend" / "bssl_backend.py"
    spec = importlib.util.spec_from_file_location("bssl_backend", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("BORING_BSSL_SOURCE_PATH", raising=False)

    crate, root = tmp_path / "crate", tmp_path / "project"
    write(crate / "deps/boringssl/ssl/a.cc", SOURCE)
    write(crate / "build/main.rs", 'apply_patch(config, "theirs.patch")?;')
    write(crate / "patches/theirs.patch", THEIRS)
    write(root / "patches/1.patch", OURS)
    write(root / ".gitignore", "/.boringssl/\n")
    write(root / "Cargo.lock", f'[[package]]\nname = "{module.CRATE}"\nversion = "{VERSION}"\n')
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "PATCHES", root / "patches")
    monkeypatch.setattr(module, "unpacked_crate", lambda: crate)
    configure(module, "?")
    return module


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def configure(backend: Any, name: str) -> None:
    write(backend.ROOT / ".cargo/config.toml", f'[env]\nBORING_BSSL_SOURCE_PATH = {{ value = "{name}" }}\n')


def right_name(backend: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        backend.seed_boringssl()
    return str(stopped.value).rpartition(" ")[2]


def test_the_tree_has_the_crates_patches_and_then_ours(backend: Any) -> None:
    name = right_name(backend)
    assert name.startswith(f".boringssl/{VERSION}-")
    configure(backend, name)
    backend.seed_boringssl()
    assert (backend.ROOT / name / "ssl/a.cc").read_text() == "eins\nzwei\nthree\n"


def test_a_changed_patch_or_crate_wants_another_name(backend: Any) -> None:
    names = {right_name(backend)}
    write(backend.PATCHES / "1.patch", OURS.replace("zwei", "ZWEI"))
    names.add(right_name(backend))
    lock = backend.ROOT / "Cargo.lock"
    lock.write_text(lock.read_text().replace(VERSION, "1.2.4"))
    names.add(right_name(backend))
    assert len(names) == 3


@pytest.mark.parametrize("patch", [OURS.replace(" eins", " uno"), "", OURS.replace("zwei", "two")])
def test_a_patch_that_does_not_apply_leaves_no_tree(backend: Any, patch: str) -> None:
    write(backend.PATCHES / "1.patch", patch)
    name = right_name(backend)
    configure(backend, name)
    with pytest.raises(SystemExit, match=r"1\.patch does not apply"):
        backend.seed_boringssl()
    assert not list((backend.ROOT / ".boringssl").iterdir())


def test_a_crate_with_a_patch_that_its_build_does_not_name_is_refused(backend: Any) -> None:
    configure(backend, right_name(backend))
    write(backend.unpacked_crate() / "patches/new.patch", OURS)
    with pytest.raises(SystemExit, match="README"):
        backend.seed_boringssl()


def test_builds_at_once_make_one_whole_tree(backend: Any) -> None:
    name = right_name(backend)
    configure(backend, name)
    with ThreadPoolExecutor(8) as pool:
        for made in [pool.submit(backend.seed_boringssl) for _ in range(8)]:
            made.result()
    assert [path.name for path in (backend.ROOT / ".boringssl").iterdir()] == [Path(name).name]
    assert (backend.ROOT / name / "ssl/a.cc").read_text() == "eins\nzwei\nthree\n"


def test_a_tree_set_by_hand_wins(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORING_BSSL_SOURCE_PATH", "elsewhere")
    backend.seed_boringssl()
    assert not (backend.ROOT / ".boringssl").exists()
