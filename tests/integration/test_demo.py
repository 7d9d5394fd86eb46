"""`ech-workers demo --check`: the whole tunnel by one command."""

import signal
import urllib.request
from pathlib import Path

import pytest

from harness.processes import Processes, run
from harness.tunnel import COMMAND


def test_demo_check_goes_through_every_combination(tmp_path: Path) -> None:
    done = run(COMMAND, "demo", "--check", env={"HOME": str(tmp_path)}, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.lower()
    for word in ("resolver", "https record", "ech", "websocket", "yamux", "simple", "socks5", "connect"):
        assert word in said, word


def test_the_demo_has_a_status_page_if_it_is_asked_for(processes: Processes) -> None:
    demo = processes.start(COMMAND, "demo", "--plain", "--listen", "127.0.0.1:0", "--status-listen", "0")
    url = demo.wait_line(r"status page on (http://\S+)")[1]
    demo.wait_line("session up")
    with urllib.request.urlopen(f"{url}healthz", timeout=10) as answer:
        assert answer.read() == b"ok\n"
    demo.signal(signal.SIGINT)
    assert demo.wait() == 0, demo.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_the_demo_leaves_no_file_behind_whatever_ends_it(
    processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    demo = processes.start(COMMAND, "demo", "--plain", "--listen", "127.0.0.1:0", env={"TMPDIR": str(tmp_path)})
    demo.wait_line("listening on")
    assert list(tmp_path.iterdir())
    demo.signal(number)
    demo.wait()
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in demo.output


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
