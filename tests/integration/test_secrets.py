"""No output of a program and no log file has a secret in it: what the harness looks for at the end of every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.processes import Processes
from harness.tunnel import TOKEN, Site

if TYPE_CHECKING:
    from pathlib import Path


def test_a_program_that_says_its_token_fails_the_test_that_started_it(tmp_path: Path) -> None:
    program = tmp_path / "ech-workers"
    program.write_text('#!/bin/sh\necho "the token is $2"\n')
    program.chmod(0o700)
    started = Processes()
    started.start(program, "--token", "s3cret-of-somebody").wait()
    with pytest.raises(AssertionError, match="s3cr"):
        started.stop()


def test_a_log_file_with_a_private_key_fails_it_too(tmp_path: Path) -> None:
    program = tmp_path / "ech-workers"
    program.write_text('#!/bin/sh\necho "-----BEGIN PRIVATE KEY-----" >"$2"\n')
    program.chmod(0o700)
    started = Processes()
    started.start(program, "--log-file", tmp_path / "log").wait()
    with pytest.raises(AssertionError, match="PRIV"):
        started.stop()


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_a_token_that_is_refused_is_in_no_log_at_the_most_talkative(site: Site, tmp_path: Path, form: str) -> None:
    """Here the secret is at its most tempting: it is what the message is about."""
    logs = [tmp_path / "server.log", tmp_path / "proxy.log"]
    server = site.server("--log-level", "debug", "--log-format", form, "--log-file", logs[0])
    wrong = "not-the-right-token"
    proxy = site.proxy(
        server.port, "--log-level", "debug", "--log-format", form, "--log-file", logs[1], token=wrong, wait=False
    )
    from harness.waiting import wait_until

    wait_until(lambda: "token" in logs[1].read_text(), "it is refused")
    assert proxy.process.running
    for log in logs:
        assert TOKEN not in log.read_text()
        assert wrong not in log.read_text()
