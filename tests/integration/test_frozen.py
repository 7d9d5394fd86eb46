"""A program frozen with PyInstaller has every command and every file. Tried where PyInstaller is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ech_workers
from harness.processes import run

pytest.importorskip("PyInstaller", reason="pip install pyinstaller, to freeze a program")

HOOKS = Path(ech_workers.__file__).parent / "__pyinstaller"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    program = folder / "tool.py"
    program.write_text("from ech_workers.cli import main\nmain()\n")
    made = run(
        *(sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "--name", "tool"),
        *("--additional-hooks-dir", HOOKS, "--distpath", folder, "--workpath", folder / "work", "--specpath", folder),
        program,
        cwd=folder,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr
    return folder / "tool" / "tool"


def test_every_command_is_there(frozen: Path) -> None:
    assert ech_workers.__version__ in run(frozen, "--version").stdout
    for command in ("proxy", "server", "check", "connections", "config", "keygen", "worker", "demo", "share"):
        done = run(frozen, command, "--help")
        assert done.returncode == 0, done.stderr


def test_the_whole_tunnel_works(frozen: Path) -> None:
    done = run(frozen, "demo", "--check", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_of_the_package_are_there(frozen: Path, tmp_path: Path) -> None:
    done = run(frozen, "worker", "init", tmp_path / "worker")
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(tmp_path.joinpath("worker").rglob("*.ts"))
