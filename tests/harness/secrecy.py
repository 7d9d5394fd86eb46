"""The name that must not be seen in clear: not by the network, and not by programs that use the proxy's port."""

import base64

SERVER_NAME = "hidden.ech-workers.test"

SPELLINGS = (
    SERVER_NAME.encode(),
    b"\x06hidden\x0bech-workers\x04test",
    SERVER_NAME.encode("utf-16-le"),
    base64.b64encode(SERVER_NAME.encode()).lower(),
)


def names_the_server(data: bytes) -> bool:
    """Whether the name is in it, in any of the ways in which it could be written."""
    lowered = data.lower()
    return any(spelling in lowered for spelling in SPELLINGS)


def heard(data: bytes) -> bytes:
    """What the proxy has answered, if it names nobody."""
    assert not names_the_server(data), f"the proxy names the server: {data!r}"
    return data
