"""The live table as a person sees it, in a real terminal."""

import re
import shlex
from pathlib import Path

import pytest

from harness import socks
from harness.ports import unused_port
from harness.processes import run
from harness.terminal import Terminal
from harness.tunnel import COMMAND, PATH, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until


def proxy_command(site: Site, port: int, listen: int) -> list[str | Path]:
    return [word for word in site.proxy_arguments(port, "--listen", f"127.0.0.1:{listen}") if word != "--plain"]


def test_live_table_shows_the_session_and_ctrl_c_ends_it(site: Site, targets: dict[str, int], tmp_path: Path) -> None:
    server, listen = site.server(), unused_port()
    with Terminal(tmp_path, proxy_command(site, server.port, listen), env=site.environment) as terminal:
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the session")
        with socks.connect(("127.0.0.1", listen), "localhost", targets["http"]) as connection:
            connection.sendall(b"GET /bytes/3000000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert len(socks.until_end(connection)) > 3000000
        screen = terminal.wait_for("2.9 MiB")
        assert f"127.0.0.1:{listen}" in screen
        assert "ECH" in screen
        terminal.press("C-c")
        screen = terminal.wait_for("exit=")
        assert "exit=0" in screen
        assert "Traceback" not in screen


def test_table_says_why_there_is_no_session(site: Site, tmp_path: Path) -> None:
    server = site.server()
    command = [
        word if word != "correct-horse-battery" else "another-token"
        for word in proxy_command(site, server.port, unused_port())
    ]
    with Terminal(tmp_path, command, env=site.environment) as terminal:
        terminal.wait_for("token")
        terminal.press("C-c")
        assert "Traceback" not in terminal.wait_for("exit=0")


@pytest.mark.parametrize("size", [(60, 15), (40, 10), (200, 60)], ids=["small", "tiny", "large"])
def test_table_survives_other_sizes(site: Site, tmp_path: Path, size: tuple[int, int]) -> None:
    server = site.server()
    with Terminal(tmp_path, proxy_command(site, server.port, unused_port()), env=site.environment) as terminal:
        terminal.wait_for("state ")
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the session")
        terminal.resize(*size)
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the table in its new size")
        terminal.press("C-c")
        assert "Traceback" not in terminal.wait_for("exit=0")


def test_keys_show_help_and_servers_and_end_the_proxy(site: Site, tmp_path: Path) -> None:
    server = site.server()
    with Terminal(tmp_path, proxy_command(site, server.port, unused_port()), env=site.environment) as terminal:
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the session")
        terminal.press("?")
        terminal.wait_for("takes no new streams and ends with its last one")
        terminal.press("s")
        screen = terminal.wait_for("1 of 1")
        assert f"{SERVER_NAME}:{server.port}" in screen
        terminal.press("x")
        terminal.wait_for("SOCKS5 and HTTP")
        terminal.press("q")
        assert "Traceback" not in terminal.wait_for("exit=0")


def test_ctrl_z_gives_the_terminal_back_and_fg_draws_again(site: Site, tmp_path: Path) -> None:
    server, listen = site.server(), unused_port()
    command = shlex.join(str(word) for word in proxy_command(site, server.port, listen))
    with Terminal(tmp_path, ["/bin/bash", "--norc", "-i"], env={**site.environment, "PS1": "ready> "}) as terminal:
        terminal.wait_for("ready>")
        terminal.press("-l", f"{command} && echo ended=$?")
        terminal.press("Enter")
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the session")
        terminal.press("C-z")
        screen = terminal.wait_for("Stopped")
        assert "SOCKS5 and HTTP" not in screen
        assert terminal.cursor_is_visible()
        terminal.press("-l", "echo typed")
        terminal.press("Enter")
        wait_until(lambda: re.search(r"^typed$", terminal.screen(), re.MULTILINE), "what is typed to be seen")
        terminal.press("-l", "fg")
        terminal.press("Enter")
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the table again")
        terminal.press("q")
        wait_until(lambda: "ready>" in terminal.screen().rstrip().splitlines()[-1], "the shell")
        assert terminal.cursor_is_visible()


def test_demo_in_a_terminal_says_which_curl_to_try_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with Terminal(
        tmp_path, [COMMAND, "demo", "--listen", f"127.0.0.1:{unused_port()}"], env={"HOME": str(tmp_path)}
    ) as terminal:
        assert "curl" in terminal.wait_for("curl", 30)
        terminal.press("C-c")
        assert "Traceback" not in terminal.wait_for("exit=0")


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    """Emacs' shell, some CI systems: a terminal that cannot move its cursor."""
    listen = f"127.0.0.1:{unused_port()}"
    with Terminal(tmp_path, [COMMAND, "demo", "--listen", listen], env={"TERM": "dumb", "HOME": str(tmp_path)}) as dumb:
        dumb.wait_for(f"curl --proxy socks5h://{listen}", 30)
        screen = dumb.wait_for("session up")
        assert f"listening on {listen}" in screen
        dumb.press("C-c")
        assert "Traceback" not in dumb.wait_for("exit=0")


def test_check_breaks_no_word_on_a_narrow_terminal(tmp_path: Path) -> None:
    with Terminal(tmp_path, [COMMAND, "demo", "--check"], env={"HOME": str(tmp_path)}, width=80, height=90) as narrow:
        screen = narrow.wait_for("exit=", 100)
    assert "exit=0" in screen
    assert all(len(line) <= 80 for line in screen.splitlines())
    assert "TLS_AES_128_GCM_SHA256," in screen.split()


def test_stopped_proxy_leaves_a_usable_terminal(site: Site, tmp_path: Path) -> None:
    """The cursor is visible again, and the error of a wrong option is one line."""
    with Terminal(
        tmp_path, [COMMAND, "proxy", "--server", f"{SERVER_NAME}{PATH}", "--listen", "x"], env=site.environment
    ) as terminal:
        screen = terminal.wait_for("exit=2")
        assert "--listen" in screen
        assert "Traceback" not in screen


def test_config_init_asks_for_what_is_missing_and_does_not_show_the_token(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    with Terminal(tmp_path, [COMMAND, "config", "init", file], env=site.environment) as terminal:
        for question, answer in (("Server (HOST", f"{SERVER_NAME}{PATH}"), ("Token (it is not shown)", TOKEN)):
            terminal.wait_for(question)
            terminal.press("-l", answer)
            terminal.press("Enter")
        screen = terminal.wait_for("exit=0")
    assert TOKEN not in screen
    written = file.read_text()
    assert f'\nserver = "{SERVER_NAME}{PATH}"\n' in written
    assert f'\ntoken = "{TOKEN}"\n' in written
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_connections_are_a_key_away(site: Site, targets: dict[str, int], tmp_path: Path) -> None:
    server, port = site.server(), unused_port()
    with Terminal(tmp_path, proxy_command(site, server.port, port), env=site.environment) as terminal:
        wait_until(lambda: re.search(r"state +up", terminal.screen()), "the session", 20)
        with socks.connect(("127.0.0.1", port), "localhost", targets["echo"]):
            terminal.press("c")
            terminal.wait_for(f"localhost:{targets['echo']}")
        terminal.press("q")
        terminal.wait_for("exit=0")


@pytest.mark.parametrize("words", [["status"], ["status", "--of", "server"], ["connections"]])
def test_no_word_is_broken_in_a_small_terminal(
    site: Site, targets: dict[str, int], tmp_path: Path, words: list[str]
) -> None:
    server = site.processes.start(
        COMMAND, "server", "--listen", "127.0.0.1:0", "--cert", site.inner.chain, "--key", site.inner.key,
        "--cert", site.outer.chain, "--key", site.outer.key, "--ech-keys", site.keys_folder, "--token", TOKEN,
        "--path", PATH, "--allow-private-targets", env=site.environment,
    )  # fmt: skip
    port = int(server.wait_line(r"listening on \S*:(\d+)\b").group(1))
    site.publish(port, site.key.base64)
    proxy = site.proxy(port)
    with socks.connect(proxy.address, "localhost", targets["echo"]) as connection:
        connection.sendall(b"x")
        assert socks.exactly(connection, 1) == b"x"
        whole = run(COMMAND, *words, env=site.environment).stdout.split()
        # The longest path is one word of about 60 characters.
        small = {"width": 72, "height": 60}
        with Terminal(tmp_path, [COMMAND, *words], env=site.environment, **small) as terminal:
            screen = terminal.wait_for("exit=0")
    assert whole
    # Figures may be others by now; names and addresses are not.
    names = {word for word in whole if len(word) > 10 and not word[0].isdigit()}
    assert names <= set(screen.split()), screen
