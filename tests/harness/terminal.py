"""A real terminal, by tmux on a socket of its own."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .processes import run
from .requirements import program


class Terminal:
    """One command in a terminal of this size; the pane stays after the command has ended."""

    def __init__(
        self, folder: Path, command: Sequence[str | Path], *, env: Mapping[str, str], width: int = 120, height: int = 40
    ) -> None:
        self._tmux: list[str | Path] = [program("tmux", "tmux"), "-S", folder / "tmux", "-f", "/dev/null"]
        assignments = [
            f"{name}={value}" for name, value in {"LANG": "C.UTF-8", "TERM": "screen-256color", **env}.items()
        ]
        # Its size is the terminal's own, whatever the environment of the tests says.
        line = shlex.join(["env", "-u", "COLUMNS", "-u", "LINES", *assignments, *(str(word) for word in command)])
        started = run(
            *self._tmux,
            "new-session",
            "-d",
            "-x",
            str(width),
            "-y",
            str(height),
            f"{line}; echo exit=$?; exec sleep 600",
        )
        assert started.returncode == 0, started.stderr

    def screen(self) -> str:
        return run(*self._tmux, "capture-pane", "-p").stdout

    def cursor_is_visible(self) -> bool:
        return run(*self._tmux, "display-message", "-p", "#{cursor_flag}").stdout.strip() == "1"

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """The screen, as soon as the text is on it."""
        deadline = time.monotonic() + timeout
        while text not in (screen := self.screen()):
            assert time.monotonic() < deadline, f"{text!r} not on the screen within {timeout} s:\n{screen}"
            time.sleep(0.05)
        return screen

    def press(self, *keys: str) -> None:
        """Keys by tmux's names: C-c, Enter."""
        run(*self._tmux, "send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        run(*self._tmux, "resize-window", "-x", str(width), "-y", str(height))

    def close(self) -> None:
        run(*self._tmux, "kill-server")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
