"""Log lines: where they go when the file is renamed or its disk is full."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ech_workers.cli import logs
from ech_workers.errors import ConfigError
from ech_workers.options.client import LogFormat, LogTuning

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("ech_workers.test")


def test_a_renamed_file_is_followed_by_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(LogTuning(), file)
    log.info("before")
    file.rename(tmp_path / "log.1")
    log.info("after")
    assert "before" in (tmp_path / "log.1").read_text()
    assert "after" in file.read_text()
    assert "before" not in file.read_text()


def test_a_full_disk_is_said_once_and_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    file.symlink_to("/dev/full")
    logs.configure(LogTuning(), file)
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
        logs.configure(LogTuning(), tmp_path)


def test_a_file_turns_over_at_its_size_and_only_some_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(LogTuning(log_max_size=100, log_keep=2), file)
    for number in range(12):
        log.info("line %02d", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    kept = "".join((tmp_path / name).read_text() for name in ("log.2", "log.1", "log"))
    numbers = [int(line[-2:]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 12))
    assert all((tmp_path / name).stat().st_size < 150 for name in ("log.2", "log.1", "log"))


def test_a_file_turns_over_at_its_age(tmp_path: Path) -> None:
    file = tmp_path / "log"
    yesterday = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - 90_000))
    file.write_text(f"{yesterday} INFO    old\n")
    logs.configure(LogTuning(log_max_age=86400.0), file)
    log.info("new")
    log.info("newer")
    assert "old" in (tmp_path / "log.1").read_text()
    assert [line[-5:].strip() for line in file.read_text().splitlines()] == ["new", "newer"]
    assert not (tmp_path / "log.2").exists()


def test_json_lines_have_what_the_record_knows(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(LogTuning(log_format="json"), file)
    log.warning("lost", extra={"layer": "tcp", "code": "tcp-reset", "session": 7})
    (line,) = file.read_text().splitlines()
    fields = json.loads(line)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("time"))
    assert fields == {
        "level": "warning",
        "logger": "ech_workers.test",
        "message": "lost",
        "layer": "tcp",
        "code": "tcp-reset",
        "session": 7,
    }


def test_the_journal_gets_priorities_and_no_second_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    logs.configure(LogTuning(), None, verbose=True)
    for write in (log.error, log.warning, log.info, log.debug):
        write("hello")
    assert capsys.readouterr().err.splitlines() == ["<3>hello", "<4>hello", "<6>hello", "<7>hello"]


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_no_log_line_shows_a_secret(form: LogFormat, tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(LogTuning(log_format=form), file, secrets=["s3cret-token", None, "abc"])
    log.info("the server answered: unknown token s3cret-token, abc")
    said = file.read_text()
    assert "s3cret" not in said
    assert "unknown token ..., abc" in said


def test_who_follows_gets_each_line_once_while_others_are_logged() -> None:
    recent = logs.Recent()
    recent.setFormatter(logging.Formatter("%(message)s"))
    stopped = threading.Event()

    def log() -> None:
        for number in itertools.count():
            if stopped.is_set():
                return
            recent.handle(logging.LogRecord("test", logging.INFO, __file__, 1, str(number), None, None))

    thread = threading.Thread(target=log)
    thread.start()
    try:
        for _ in range(200):
            with recent.followed(recent.LINES) as (last, new):
                seen = [*last, *(new.get(timeout=20) for _ in range(10))]
            first = int(seen[0])
            assert seen == [str(number) for number in range(first, first + len(seen))]
    finally:
        stopped.set()
        thread.join()


@pytest.mark.parametrize(("count", "kept"), [(0, []), (-1, []), (1, ["2"]), (5, ["0", "1", "2"])])
def test_the_last_lines_are_as_many_as_were_asked_for(count: int, kept: list[str]) -> None:
    recent = logs.Recent()
    recent.setFormatter(logging.Formatter("%(message)s"))
    for number in range(3):
        recent.handle(logging.LogRecord("test", logging.INFO, __file__, 1, str(number), None, None))
    assert recent.lines(count) == kept
