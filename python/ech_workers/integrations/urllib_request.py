"""urllib.request through a tunnel."""

from __future__ import annotations

import functools
import urllib.request
from typing import TYPE_CHECKING, Any

from ech_workers.integrations.http_client import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    import http.client
    import ssl

    from ech_workers.tunnel import Tunnel

__all__ = ["HTTPHandler", "HTTPSHandler", "build_opener"]


class HTTPHandler(urllib.request.HTTPHandler):
    """Opens http URLs through a tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__()
        self._through = tunnel

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Raises URLError, whose reason is the TunnelError."""
        made: Any = functools.partial(HTTPConnection, self._through)
        return self.do_open(made, req)


class HTTPSHandler(urllib.request.AbstractHTTPHandler):
    """Opens https URLs through a tunnel."""

    def __init__(self, tunnel: Tunnel, context: ssl.SSLContext | None = None) -> None:
        """context: None is ssl.create_default_context()."""
        super().__init__()
        self._through = tunnel
        self._tls = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Raises URLError, whose reason is the TunnelError or ssl.SSLError."""
        made: Any = functools.partial(HTTPSConnection, self._through, context=self._tls)
        return self.do_open(made, req)

    https_request = urllib.request.AbstractHTTPHandler.do_request_


def build_opener(
    tunnel: Tunnel, *handlers: urllib.request.BaseHandler, context: ssl.SSLContext | None = None
) -> urllib.request.OpenerDirector:
    """An opener for http and https alone: ftp, which would connect by itself, and local files are unknown to it.

    handlers: more of them (cookies, authentication). context: for https; None is ssl.create_default_context().
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.UnknownHandler(),
        HTTPHandler(tunnel),
        HTTPSHandler(tunnel, context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        *handlers,
    ):
        opener.add_handler(handler)
    return opener
