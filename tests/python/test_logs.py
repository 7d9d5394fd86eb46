"""Log lines: where they go when the file is renamed or its disk is full."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from ech_workers.cli import logs
from ech_workers.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("ech_workers.test")


def test_a_renamed_file_is_followed_by_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure("info", file, verbose=False)
    log.info("before")
    file.rename(tmp_path / "log.1")
    log.info("after")
    assert "before" in (tmp_path / "log.1").read_text()
    assert "after" in file.read_text()
    assert "before" not in file.read_text()


def test_a_full_disk_is_said_once_and_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    file.symlink_to("/dev/full")
    logs.configure("info", file, verbose=False)
    for number in range(5):
        log.info("line %d", number)
    said = capsys.readouterr().err
    assert said == (
        f"ech-workers: local: cannot write {file}: No space left on device;"
        " log lines are lost until it can be written\n"
    )
    # The disk has room again.
    file.unlink()
    log.info("line 5")
    log.info("line 6")
    lines = [line.split("INFO    ")[1] for line in file.read_text().splitlines()]
    assert lines == ["line 5", "5 log lines were lost before this one", "line 6"]


def test_a_log_file_that_cannot_be_opened_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log-file: cannot write .*: Is a directory"):
        logs.configure("info", tmp_path, verbose=False)
