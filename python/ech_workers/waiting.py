"""Threads and waits that do not stop a program that gevent has patched.

gevent makes ``threading`` cooperative: a "thread" that waits in native code holds up all the others. What this package
waits for natively is therefore done in threads of the system, and greenlets wait for it in the way of gevent's hub.
Without gevent these are the ordinary threads and waits.
"""

from __future__ import annotations

import _thread
import importlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers._native import Engine, Opening

__all__ = ["Thread", "Turns", "await_opening", "in_thread", "lock", "original"]

T = TypeVar("T")


def _is_patched() -> bool:
    """Whether threads are gevent's, and no longer the system's own."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def _hub() -> Any:
    """gevent's hub of this thread, or None where threads are the system's own."""
    if not _is_patched():
        return None
    import gevent

    return gevent.get_hub()


def original(module: str, name: str) -> Any:
    """What ``module`` has by this ``name`` for threads of the system: gevent may have put something else there."""
    if not _is_patched():
        return getattr(importlib.import_module(module), name)
    return sys.modules["gevent.monkey"].get_original(module, name)


def lock() -> Any:
    """A lock that may be held more than once by its thread, and that threads of the system share.

    It must be held briefly: under gevent it holds up all greenlets of the thread that waits for it.
    """
    # Not threading.RLock: after gevent's patch even the original builds a lock in Python upon gevent's own locks, which
    # do not always wake a greenlet when a thread of the system lets go.
    return _thread.RLock()


def in_thread(call: Callable[[], T]) -> T:
    """What ``call``, which may wait long, returns; other greenlets go on meanwhile."""
    hub = _hub()
    return call() if hub is None else hub.threadpool.apply(call)


def await_opening(engine: Engine, host: str, port: int, timeout: float | None) -> Opening:
    """Opens a stream, and waits until that has ended in one way or the other."""
    hub = _hub()
    if hub is None:
        opening = engine.open(host, port, timeout)
        try:
            opening.wait()
        except BaseException:
            opening.cancel()
            raise
        return opening
    turns = Turns()
    opening = engine.open(host, port, timeout, turns.set)
    try:
        while not opening.wait(0):
            turns.wait(None)
    except BaseException:
        opening.cancel()
        raise
    finally:
        turns.close()
    return opening


class Turns:
    """Wakes one waiter, from any thread of the system, each time that something has changed."""

    def __init__(self) -> None:
        hub = _hub()
        self._hub = hub
        self._event = threading.Event() if hub is None else None
        self._is_set = False
        self._waiter: Any = None
        self._closing = lock()
        self._closed = False
        if hub is not None:
            self._watcher = hub.loop.async_()
            self._watcher.start(self._switch)

    def set(self) -> None:
        """Something has changed. For any thread."""
        if self._event is not None:
            self._event.set()
        else:
            self._is_set = True
            with self._closing:
                if not self._closed:
                    self._watcher.send()

    def wait(self, timeout: float | None) -> None:
        """Waits until something has changed since the last wait, for ``timeout`` seconds at most."""
        if self._event is not None:
            self._event.wait(timeout)
            self._event.clear()
            return
        if not self._is_set:
            import gevent

            self._waiter = gevent.event.Event()
            self._waiter.wait(timeout)
        self._is_set = False

    def close(self) -> None:
        if self._event is None:
            with self._closing:
                self._closed = True
            self._watcher.close()

    def _switch(self) -> None:
        if self._waiter is not None:
            self._waiter.set()


class Thread:
    """A thread of the system that does not keep the program alive."""

    def __init__(self, run: Callable[[], object], name: str) -> None:
        """Starts it."""
        self._thread: threading.Thread | None = None
        self._ended = False
        if not _is_patched():
            self._thread = threading.Thread(target=run, name=name, daemon=True)
            self._thread.start()
        else:

            def cooperate() -> None:
                try:
                    run()
                finally:
                    self._ended = True

            original("_thread", "start_new_thread")(cooperate, ())

    def join(self) -> None:
        """Waits until it has ended; at once when that is the thread that asks."""
        if self._thread is None:
            while not self._ended:
                time.sleep(0.005)
        elif self._thread is not threading.current_thread():
            self._thread.join()
