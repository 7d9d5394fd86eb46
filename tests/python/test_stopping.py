"""Signals while a command runs: the first asks for the end, the second does not wait for it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ech_workers.cli.stopping import Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_at_once(number: signal.Signals) -> None:
    with Stopping() as stopping:
        assert not stopping.wait(0.01)
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        started = time.monotonic()
        assert stopping.wait(30)
        assert time.monotonic() - started < 5
        assert stopping.wait(30)


def test_a_signal_that_comes_before_the_wait_is_seen_by_it() -> None:
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.wait(30)


def test_another_thread_can_ask() -> None:
    with Stopping() as stopping:
        threading.Timer(0.1, stopping.ask).start()
        assert stopping.wait(30)
        assert stopping.asked


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stopping():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_end_is_waited_for_until_a_second_signal() -> None:
    release = threading.Event()
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.wait(5)
        ending = threading.Thread(target=release.wait)
        ending.start()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert not stopping.wait_for(ending)
        release.set()
        ending.join()
        assert stopping.wait_for(ending)
