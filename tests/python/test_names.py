"""Names that are not ASCII, in the form in which browsers send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ech_workers.names import ascii_name


@pytest.mark.parametrize(
    ("name", "ascii_form"),
    [
        ("example.com", "example.com"),
        ("Example.COM", "Example.COM"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        # Where IDNA 2003 leads to another registrant's domain.
        ("straße.de", "xn--strae-oqa.de"),
        ("faß.de", "xn--fa-hia.de"),
        ("βόλος.com", "xn--nxasmm1c.com"),
        # Other dots are dots, and wide letters are letters.
        ("bücher\u3002example", "xn--bcher-kva.example"),
        ("\uff42ücher.example", "xn--bcher-kva.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    ],
)
def test_the_ascii_form_is_that_of_browsers(name: str, ascii_form: str) -> None:
    assert ascii_name(name) == ascii_form


@pytest.mark.parametrize("name", ["bü..example", "\u200cü.example", "ü\u0000.example", "ü" * 64 + ".example", "a b.ü"])
def test_what_is_no_name_is_said_to_be_none(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ascii_name(name)


@given(st.text(max_size=40))
def test_any_text_has_an_ascii_form_or_is_refused(name: str) -> None:
    try:
        form = ascii_name(name)
    except ValueError:
        return
    assert form.isascii()
    assert ascii_name(form) == form
