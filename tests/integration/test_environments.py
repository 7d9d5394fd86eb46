"""The places in which the command is started: pipes that close, locales, no colours, process 1, a home that is read-only."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness import socks
from harness.processes import run
from harness.tunnel import COMMAND, Site

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("words", ["--help", "config schema", "proxy --help"])
def test_a_reader_that_goes_away_is_no_failure(words: str) -> None:
    done = run("bash", "-c", f'"$0" {words} | head -1 >/dev/null; exit "${{PIPESTATUS[0]}}"', COMMAND)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_what_it_says_can_be_written_in_an_ascii_locale(site: Site) -> None:
    """`check` has signs that ASCII lacks."""
    environment = {**site.environment, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(COMMAND, "check", "--server", "127.0.0.1:1/ws", "--no-ech", env=environment)
    assert "it ends at tcp" in done.stdout
    assert "Traceback" not in done.stderr


def test_no_colours_where_none_are_wanted(site: Site, tmp_path: Path) -> None:
    done = run(
        *("script", "--quiet", "--return", "--command"),
        f"{COMMAND} check --server 127.0.0.1:1/ws --no-ech",
        tmp_path / "typescript",
        env={**site.environment, "NO_COLOR": "1", "TERM": "xterm-256color"},
    )
    assert "it ends at tcp" in done.stdout, done.stderr
    assert "\x1b[3" not in done.stdout


def test_a_home_that_is_read_only_costs_the_cache_alone(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # Root may write everywhere: a file in the place of the directory stops it too.
    (home / ".cache").write_text("")
    server = site.server()
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(site.runtime), "XDG_CACHE_HOME": ""}
    process = site.processes.start(*site.proxy_arguments(server.port), env=environment)
    process.wait_line("session up")
    assert "Traceback" not in process.output


def test_as_process_1_it_ends_when_it_is_told(site: Site) -> None:
    """As in a container: process 1 has no default for signals."""
    if os.getuid() != 0:
        pytest.skip("a namespace of processes needs root")
    server = site.server()
    process = site.processes.start(
        *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *site.proxy_arguments(server.port),
        env=site.environment,
    )
    process.wait_line("session up")
    children = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGTERM)
    assert process.wait() == 0


def test_a_user_whom_the_system_does_not_know_and_who_has_no_home_is_told_what_matters(
    site: Site, targets: dict[str, int]
) -> None:
    """As in a container that is run with a number for a user. Here the number is a name for the user of the test in a namespace, so
    that it may read what that one may."""
    number = next(number for number in range(54321, 64321) if not _is_known(number))
    become = ("unshare", "--user", f"--map-user={number}", f"--map-group={number}")
    stranger = (*become, "env", "-i", f"PATH={os.environ['PATH']}", "LC_ALL=C.UTF-8")
    if run(*stranger, "id", "-u").stdout.strip() != str(number):
        pytest.skip("this user may not make namespaces of users")
    server = site.server()
    process = site.processes.start(*stranger, *site.proxy_arguments(server.port))
    found = process.wait_line(r"listening on (\S*):(\d+)\b")
    process.wait_line("session up")
    process.wait_line("there is no home directory: ECH configurations are kept in memory alone")
    with socks.connect(("127.0.0.1", int(found.group(2))), "127.0.0.1", targets["echo"]) as connection:
        connection.sendall(b"a")
        assert socks.exactly(connection, 1) == b"a"
    assert "Traceback" not in process.output
    for words in ((), ("--help",), ("--version",), ("status",), ("config", "check")):
        done = run(*stranger, COMMAND, *words)
        assert "Traceback" not in done.stderr, words
        assert (done.stdout + done.stderr).strip(), words


def _is_known(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True
