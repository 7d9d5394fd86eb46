"""`ech-workers demo --check`: the whole tunnel by one command."""

from pathlib import Path

import pytest

from harness.processes import run
from harness.tunnel import COMMAND


def test_demo_check_goes_through_every_combination(tmp_path: Path) -> None:
    done = run(COMMAND, "demo", "--check", env={"HOME": str(tmp_path)}, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.lower()
    for word in ("resolver", "https record", "ech", "websocket", "yamux", "simple", "socks5", "connect"):
        assert word in said, word


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_command_line_says_what_it_is(option: str) -> None:
    done = run(COMMAND, option)
    assert done.returncode == 0, done.stderr
    assert ("BoringSSL" if option == "--version" else "proxy") in done.stdout


def test_keygen_writes_a_key_for_its_owner_alone(tmp_path: Path) -> None:
    done = run(COMMAND, "keygen", "--public-name", "public.example", "--out", tmp_path / "keys")
    assert done.returncode == 0, done.stderr
    (key,) = (tmp_path / "keys").glob("*.pem")
    assert key.stat().st_mode & 0o777 == 0o600
    text = key.read_text()
    assert text.index("PRIVATE KEY") < text.index("ECHCONFIG")
    assert "ech=" in done.stdout
