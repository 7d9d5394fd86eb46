"""requests through a tunnel: ``pip install ech-workers[requests]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ech_workers.integrations import missing

try:
    import requests
    from requests.adapters import DEFAULT_POOLBLOCK, HTTPAdapter
except ImportError as error:
    raise missing(error, "requests") from None

from ech_workers.integrations.urllib3 import TunnelPoolManager

if TYPE_CHECKING:
    from urllib3 import ProxyManager

    from ech_workers.tunnel import Tunnel

__all__ = ["TunnelAdapter", "session"]


class TunnelAdapter(HTTPAdapter):
    """A transport adapter whose connections go through a tunnel. It must be mounted for ``http://`` and for ``https://``:
    what is mounted for one alone is left by a redirect to the other (``session`` does both)."""

    def __init__(self, tunnel: Tunnel, **options: Any) -> None:
        """options: those of requests.adapters.HTTPAdapter (``max_retries``, ``pool_maxsize``, ...)."""
        self._through = tunnel
        super().__init__(**options)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = DEFAULT_POOLBLOCK, **pool_kwargs: Any
    ) -> None:
        self.poolmanager = TunnelPoolManager(
            self._through, num_pools=connections, maxsize=maxsize, block=block, **pool_kwargs
        )

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> ProxyManager:
        """A proxy would be connected to directly. Raises InvalidProxyURL."""
        raise requests.exceptions.InvalidProxyURL(f"{proxy}: the connection goes through the tunnel, not a proxy")

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """As HTTPAdapter.send. Proxies, which a session may have from the environment, are left out."""
        options["proxies"] = {}
        return super().send(request, *args, **options)


def session(tunnel: Tunnel, **options: Any) -> requests.Session:
    """A requests.Session all of whose requests go through the tunnel. options: those of ``TunnelAdapter``."""
    made = requests.Session()
    adapter = TunnelAdapter(tunnel, **options)
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    return made
