"""What `make wheels` does to a wheel, and what it finds wrong with one."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
INFORMATION = "example-1.0.dist-info/"
# As panics name their place.
EXTENSION = b"\x7fELF /cargo/registry/src/index-1234/zlib-rs-0.6.8/src/lib.rs\0/cargo/registry/src/index-1234/h2-0.4.20/src/a.rs"
NOTICES = b"BoringSSL 1 (Apache-2.0): 1\nh2 0.4.20 (MIT): 2\nzlib-rs 0.6.8 (Zlib): 3\n"


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "scripts" / "wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "wheels", module)
    spec.loader.exec_module(module)
    return module


def made(folder: Path, wheels: ModuleType, notices: bytes = b"\n" + NOTICES) -> Path:
    """A wheel as maturin makes it, to which the notices and the bill of materials were added."""
    path = folder / "example-1.0-cp311-abi3-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("example/_native.abi3.so", EXTENSION)
        written.writestr(f"{INFORMATION}METADATA", "Name: example\nLicense-File: THIRD_PARTY_LICENSES.txt\n\nText\n")
        written.writestr(f"{INFORMATION}RECORD", "")
    added = {f"{INFORMATION}licenses/THIRD_PARTY_LICENSES.txt": notices, f"{INFORMATION}sboms/a.cyclonedx.json": b"{}"}
    wheels.rewrite(path, added, record=f"{INFORMATION}RECORD")
    return path


def complaints(path: Path, wheels: ModuleType) -> list[str]:
    with zipfile.ZipFile(path) as wheel:
        found: list[str] = wheels.check_information(wheel)
        return found


def test_a_wheel_to_which_files_were_added_is_right(tmp_path: Path, wheels: ModuleType) -> None:
    assert complaints(made(tmp_path, wheels), wheels) == []


def test_a_crate_that_the_notices_do_not_name_is_found_in_the_extension(tmp_path: Path, wheels: ModuleType) -> None:
    path = made(tmp_path, wheels, b"\n" + NOTICES.replace(b"zlib-rs", b"zlib"))
    assert complaints(path, wheels) == ["the notices do not name zlib-rs 0.6.8"]


def test_notices_without_boringssl_are_not_enough(tmp_path: Path, wheels: ModuleType) -> None:
    path = made(tmp_path, wheels, b"\n" + NOTICES.partition(b"\n")[2])
    assert complaints(path, wheels) == ["the notices do not name BoringSSL"]


def test_a_file_that_changed_after_its_sum_was_taken_is_found(tmp_path: Path, wheels: ModuleType) -> None:
    path = made(tmp_path, wheels)
    changed = tmp_path / "changed.whl"
    with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(changed, "w") as written:
        for name in wheel.namelist():
            written.writestr(name, wheel.read(name) + (b" " if name.endswith(".so") else b""))
        written.writestr("example/more.py", "")
    assert complaints(changed, wheels) == [
        "RECORD is wrong about example/_native.abi3.so",
        "RECORD is wrong about example/more.py",
    ]


def test_a_licence_that_the_metadata_does_not_name_is_found(tmp_path: Path, wheels: ModuleType) -> None:
    path = made(tmp_path, wheels)
    wheels.rewrite(path, {f"{INFORMATION}licenses/OTHER": b"text"}, record=f"{INFORMATION}RECORD")
    assert complaints(path, wheels) == [
        f"{INFORMATION}licenses/OTHER is named in METADATA, or in the wheel, but not in both"
    ]
