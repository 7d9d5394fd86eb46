"""What happens to the machine: another network, another way to addresses, a time in which this process did not run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ech_workers.nat64 import Nat64, Translation
from ech_workers.network import NetworkWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ech_workers.clocks import Clocks
    from ech_workers.timing import Moment

__all__ = ["Surroundings"]


class Surroundings:
    """Looks out for changes, and keeps each until the loop asks for it."""

    def __init__(self, clocks: Clocks, wake: Callable[[], object], *, watches_network: bool) -> None:
        """wake: called in any thread when there is a change to ask for. watches_network: look out for changes of the machine's
        addresses and routes."""
        self._clocks = clocks
        self._wake = wake
        self._watches_network = watches_network
        self._is_changed = False
        self.translation = Translation()
        """How addresses are reached from here."""
        self._nat64 = Nat64(self.translation, self.network_changed)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """As long as it lasts, the network is watched."""
        watch = NetworkWatch(self.network_changed) if self._watches_network else None
        if watch is not None:
            self._nat64.look()
            # Otherwise the first attempt would fail on a network with IPv6 alone, and be told as the tunnel's failure.
            self._nat64.wait()
        try:
            yield
        finally:
            if watch is not None:
                watch.close()
            self._nat64.close()

    def network_changed(self) -> None:
        """There is a change to ask for. For any thread."""
        self._is_changed = True
        self._wake()

    def change(self, now: Moment) -> float | None:
        """What has changed since the last question: the seconds in which this process did not run, 0 for the network alone; None
        when nothing has. To be called at least once a tick."""
        missing = self._clocks.missing(now)
        if not missing and not self._is_changed:
            return None
        self._is_changed = False
        if self._watches_network:
            self._nat64.look()
        return missing
