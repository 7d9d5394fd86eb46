"""IP addresses as text: what is one, and in which order those of both families are tried."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["interleaved", "is_address"]


def is_address(text: str) -> bool:
    """Whether ``text`` is an IP literal, without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def interleaved(*families: Sequence[str]) -> tuple[str, ...]:
    """The addresses of all families in turn, beginning with the first family's (RFC 8305 section 4)."""
    longest = max(map(len, families), default=0)
    return tuple(family[i] for i in range(longest) for family in families if i < len(family))
