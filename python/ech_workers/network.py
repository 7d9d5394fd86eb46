"""Tells when the machine's addresses or routes change, where the system says so (netlink on Linux).

Elsewhere nothing is told, and jumps of the clocks are what there is to go by.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NetworkWatch"]

_log = logging.getLogger("ech_workers")

# linux/rtnetlink.h: the groups of addresses and routes, and the messages of a change.
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_CHANGES = frozenset({20, 21, 24, 25})  # RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE
_HEADER = struct.Struct("=LHHLL")

# A change comes as a burst of messages: it is told when it has been quiet for this long, in seconds.
_QUIET = 0.2


class NetworkWatch:
    """A thread that calls ``changed`` after a change of the network, until it is closed."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._socket = _netlink()
        if self._socket is None:
            return
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="ech-workers-network", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. May be called twice."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._ours.send(b"\0")
        self._thread.join()
        for opened in (self._socket, self._ours, self._theirs):
            opened.close()
        self._socket = None

    def _run(self) -> None:
        assert self._socket is not None
        waiting = False
        while True:
            ready, _, _ = select.select([self._socket, self._theirs], [], [], _QUIET if waiting else None)
            if self._theirs in ready:
                return
            if self._socket in ready:
                waiting |= self._is_change()
            elif waiting:
                waiting = False
                self._changed()

    def _is_change(self) -> bool:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            # ENOBUFS: there were more than the socket holds.
            _log.debug("netlink: %s", error)
            return True
        return any(kind in _CHANGES for kind in _kinds(data))


def _kinds(data: bytes) -> list[int]:
    """The types of the messages (struct nlmsghdr), as far as they are whole."""
    found = []
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            break
        found.append(kind)
        # NLMSG_ALIGN
        data = data[(length + 3) & ~3 :]
    return found


def _netlink() -> socket.socket | None:
    if sys.platform != "linux":
        return None
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        opened.bind((0, _GROUPS))
    except OSError as error:
        # A container may not allow it.
        _log.debug("changes of the network are not seen: %s", error)
        return None
    return opened
