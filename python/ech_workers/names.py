"""Host names in the form in which they go on the wire."""

from __future__ import annotations

__all__ = ["ascii_name"]


def ascii_name(name: str) -> str:
    """The ASCII form of a host name, by UTS 46 without the transitional mapping, as browsers do it: ``straße.de`` is
    ``xn--strae-oqa.de`` and never ``strasse.de``, which is somebody else's. ASCII names are left as they are.

    Raises ValueError: why it is no host name.
    """
    if name.isascii():
        return name
    # Only here: most names are ASCII, and the tables of the library are large.
    import idna

    try:
        return idna.encode(name, uts46=True, std3_rules=False).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(str(error)) from None
