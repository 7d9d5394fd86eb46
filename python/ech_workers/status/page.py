"""The page as it is served: one file, and the policy that lets its own style and script run and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

__all__ = ["page", "policy"]


def page() -> bytes:
    """The document."""
    return Path(__file__).with_name("page.html").read_bytes()


def policy(document: bytes) -> str:
    """Its Content-Security-Policy: inline style and script by their hashes, the feed of the same origin, no more."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hashes(document, b'style')}",
            f"script-src {_hashes(document, b'script')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashes(document: bytes, tag: bytes) -> str:
    found = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), document, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)
