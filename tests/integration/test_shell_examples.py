"""Every shell block of README and docs runs, as it stands in the text, where that is possible without the Internet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import namespaces, requirements, shell_world
from harness.shell_examples import blocks

if TYPE_CHECKING:
    from pathlib import Path

PAGES = list(dict.fromkeys(block.page for block in blocks() if not block.reason))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.timeout(600)
def test_the_commands_of_a_page_work_one_after_the_other(page: str, tmp_path: Path) -> None:
    for name in ("bash", "curl", "git", "openssl"):
        requirements.program(name, name)
    if not namespaces.are_possible():
        pytest.skip("this user may not make network namespaces")
    said = shell_world.run(page, tmp_path)
    expected = [f"ran {block}" for block in blocks() if block.page == page and not block.reason]
    assert [line for line in said.splitlines() if line.startswith("ran ")] == expected
