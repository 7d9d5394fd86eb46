"""The commands of README and docs: shells read them, and our command line takes them. What can be run is run as well, by
tests/integration/test_shell_examples.py."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import click
import pytest

from ech_workers import cli
from harness.processes import run
from harness.requirements import program
from harness.shell_examples import NOT_RUN, PAGES, PREPARED, ROOT, STANDS_FOR, Block, blocks

BLOCKS = blocks()
OTHERS = [*blocks("crontab"), *blocks("sshconfig")]


def ours(text: str) -> list[list[str]]:
    """The words behind each `ech-workers` of a text."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        read = shlex.shlex(line, posix=True, punctuation_chars=True)
        read.whitespace_split = True
        commands = [
            list(part) for ends, part in itertools.groupby(read, lambda word: set(word) <= set(";|&()")) if not ends
        ]
        for command in commands:
            names = [number for number, word in enumerate(command) if Path(word).name == "ech-workers"]
            # A user has the name too, an image, an environment, and a package that is installed.
            if names and not {"install", "useradd", "build", "venv"} & set(command):
                found.append(list(itertools.takewhile(lambda word: word != ">", command[names[-1] + 1 :])))
    return found


def take(words: list[str]) -> None:
    """Has the command line read its arguments, without doing anything. Raises click.UsageError."""
    command: click.Command = cli.commands
    context = click.Context(command, info_name="ech-workers")
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, context, info_name=name)
    command.make_context(context.info_name, words, parent=context.parent)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_shell_reads_the_block(block: Block) -> None:
    done = run(program("bash", "bash"), "-n", "-c", block.text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in [*BLOCKS, *OTHERS] if "ech-workers" in block.text], ids=str)
def test_the_command_line_takes_what_the_block_gives_it(block: Block) -> None:
    for words in ours(block.text.replace("%h %p", "ssh.example 22")):
        try:
            take(words)
        except click.exceptions.Exit:
            pass  # --version and --help
        except click.UsageError as error:
            pytest.fail(f"{block}: ech-workers {shlex.join(words)}: {error.format_message()}", pytrace=False)


def test_the_blocks_that_are_named_are_there() -> None:
    """The lists in harness/shell_examples.py name blocks that the pages have, and each by a line that only one block has."""
    known = Counter(block.key for block in BLOCKS)
    assert {*NOT_RUN, *PREPARED} <= {key for key, number in known.items() if number == 1}
    assert all(any(word in block.text for block in BLOCKS if block.page == page) for page, word in STANDS_FOR)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_in_the_text_is_one_that_there_is(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`(ech-workers [a-z][^`]*)`", text):
        # In the command line's own words some of these stand for a number, or for more words.
        (words,) = ours(span.replace("%h %p", "HOST PORT").replace(" PORT", " 22").replace("...", "x"))
        try:
            take(words)
        except (click.MissingParameter, click.exceptions.Exit):
            pass
        except click.UsageError as error:
            pytest.fail(f"{span}: {error.format_message()}", pytrace=False)


def test_every_make_target_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(" ".join(re.findall(r"^([a-z -]+):", makefile, re.MULTILINE)).split())
    places = [*PAGES, *(ROOT / ".github" / "workflows").glob("*.yml")]
    named = {
        (place.name, target)
        for place in places
        for target in re.findall(r"(?:`|^|run: |PATH\" )make ([a-z][a-z-]*)", place.read_text("utf-8"), re.MULTILINE)
    }
    assert len(named) > 20
    assert {(place, target) for place, target in named if target not in targets} == set()
