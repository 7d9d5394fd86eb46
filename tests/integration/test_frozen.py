"""A program frozen with PyInstaller: every command is in it, and the status page too."""

import http.client
import subprocess
import sys
from pathlib import Path

import pytest

from harness.processes import Processes, run

pytest.importorskip("PyInstaller", reason="pip install pyinstaller")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_frozen_program_has_every_command(tmp_path: Path, processes: Processes) -> None:
    script = tmp_path / "frozen.py"
    script.write_text("from ech_workers.cli import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "--distpath", tmp_path / "dist",
         "--workpath", tmp_path / "work", "--specpath", tmp_path, script],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    program = tmp_path / "dist" / "frozen" / "frozen"
    for command in ("--help", "proxy --help", "server --help", "config schema", "keygen --help"):
        asked = run(program, *command.split(), env={"XDG_RUNTIME_DIR": str(tmp_path)})
        assert asked.returncode == 0, asked.stderr
    demo = processes.start(program, "demo", "--plain", "--listen", "127.0.0.1:0", "--status-listen", "0")
    host, port = demo.wait_line(r"status page on http://(\S+):(\d+)/", 60).groups()
    demo.wait_line("session up")
    client = http.client.HTTPConnection(host, int(port), timeout=10)
    client.request("GET", "/")
    assert b"<title>ech-workers" in client.getresponse().read()
    client.close()
