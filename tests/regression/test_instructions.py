"""Instructions for fixed pieces of work, against committed figures: what seconds on a shared machine cannot tell.

`make instructions` writes the figures of this compiler to instructions.json, after a change that is meant to cost.
The pieces are in rust/tunnel/examples/instructions.rs; callgrind counts what user space executes, all threads.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cargo import example
from harness.processes import run
from harness.requirements import program

# How often threads wake depends on what else runs.
pytestmark = pytest.mark.alone

FIGURES = Path(__file__).with_name("instructions.json")
# For a compiler whose figures nobody has committed: only what no compiler does by itself.
UNKNOWN_COMPILER = 0.5


@dataclass(frozen=True)
class Piece:
    name: str
    amounts: tuple[int, int]
    """One more of it is the difference between the two: start, handshake and certificates do not count."""
    unit: str
    tolerance: float


PIECES = (
    # One thread without I/O: the same to the instruction in every run.
    Piece("framing-up", (8, 16), "MiB through yamux and WebSocket, masked, both ends", 0.02),
    Piece("framing-down", (8, 16), "MiB through yamux and WebSocket, unmasked, both ends", 0.02),
    Piece("negotiations", (1000, 2000), "SOCKS5 and HTTP CONNECT negotiation each", 0.02),
    # One thread with sockets.
    Piece("records", (8, 16), "MiB sealed and opened as TLS records", 0.03),
    # Client and server in their threads: how often they wake varies by about 2 %.
    Piece("tunnel-down", (4, 12), "MiB through client and server, down", 0.1),
    Piece("tunnel-up", (4, 12), "MiB through client and server, up", 0.1),
)


@pytest.fixture(scope="module")
def pieces() -> Path:
    program("valgrind", "valgrind")
    return build()


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
def test_a_piece_of_work_takes_no_more_instructions_than_before(
    pieces: Path, piece: Piece, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads(FIGURES.read_text())
    compiler = compiler_version()
    expected, tolerance = known.get(compiler, {}).get(piece.name), piece.tolerance
    if expected is None:
        expected, tolerance = next(reversed(known.values()))[piece.name], UNKNOWN_COMPILER
        with capsys.disabled():
            print(
                f"\n{piece.name}: no figures for rustc {compiler}, checked within {tolerance:.0%} of another compiler's"
            )
    counted = count(pieces, piece)
    ratio = counted / expected
    said = f"{counted:,} instructions for one {piece.unit}, {ratio:.3f} of the {expected:,} committed"
    assert ratio <= 1 + tolerance, f"{said}: slower (meant? `make instructions`)"
    # A gain that is not committed hides the next loss.
    assert ratio >= 1 - tolerance, f"{said}: faster; `make instructions` keeps the gain"


def build() -> Path:
    """As it ships, without the assertions and overflow checks of the other tests."""
    return example("ech-workers-tunnel", "instructions", checked=False)


def compiler_version() -> str:
    found = re.search(r"^rustc (\S+)", run("rustc", "--version").stdout)
    assert found
    return found[1]


def count(pieces: Path, piece: Piece) -> int:
    """Instructions for one more of a piece."""
    few, many = (total(pieces, piece, amount) for amount in piece.amounts)
    return (many - few) // (piece.amounts[1] - piece.amounts[0])


def total(pieces: Path, piece: Piece, amount: int) -> int:
    finished = run(
        *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", pieces, piece.name, str(amount)),
        timeout=100,
    )
    found = re.search(r"Collected : (\d+)", finished.stderr)
    assert finished.returncode == 0, finished.stderr
    assert found, finished.stderr
    return int(found[1])


def write() -> None:
    pieces = build()
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known[compiler_version()] = {piece.name: count(pieces, piece) for piece in PIECES}
    FIGURES.write_text(json.dumps(known, indent=2) + "\n")
    print(FIGURES.read_text(), end="")


if __name__ == "__main__":
    write()
