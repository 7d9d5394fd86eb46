"""Ports that nobody else takes while a test relies on them."""

import socket
from collections import deque

# More than one test ever asks for.
_MOST = 64
_held: deque[socket.socket] = deque()


def unused_port() -> int:
    """A TCP port, on every address of this machine, on which nobody listens.

    It stays bound, so that the system gives it to no other program that asks for a free port; tests run beside one another. A
    program that is told to may listen on it: as servers do, it sets SO_REUSEADDR.
    """
    held = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    if held.family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    _held.append(held)
    if len(_held) > _MOST:
        _held.popleft().close()
    return int(held.getsockname()[1])
