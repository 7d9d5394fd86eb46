"""Tells when the machine's addresses or routes change, where the system says so (netlink on Linux).

Elsewhere nothing is told, and jumps of the clocks are what there is to go by.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING

from ech_workers import waiting

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
        self._told_to_end, self._end = os.pipe()
        self._thread = waiting.Thread(self._run, "ech-workers-network")

    def close(self) -> None:
        """Ends the thread. May be called twice."""
        if self._socket is None:
            return
        # Closing alone would not do: a forked child has the pipe, too.
        os.write(self._end, b"\0")
        self._thread.join()
        os.close(self._end)
        os.close(self._told_to_end)
        self._socket.close()
        self._socket = None

    def _run(self) -> None:
        assert self._socket is not None
        # Not select(), which takes no descriptor above 1023.
        poll = waiting.original("select", "poll")()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._told_to_end, select.POLLIN)
        changing = False
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(_QUIET * 1000 if changing else None)]
            if self._told_to_end in ready:
                return
            if ready:
                changing |= self._is_change()
            elif changing:
                changing = False
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
        opened: socket.socket = waiting.original("socket", "socket")(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        opened.bind((0, _GROUPS))
    except OSError as error:
        # A container may not allow it.
        _log.debug("changes of the network are not seen: %s", error)
        return None
    return opened
