"""What is to happen on the streams of a yamux session, for two implementations that must agree on it afterwards."""

import random
from dataclasses import dataclass
from typing import Any

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Stream:
    """Between us (Rust, or the Worker's TypeScript) and a peer. Times in milliseconds, amounts in bytes."""

    opened_by_us: bool
    from_us: int
    from_peer: int
    we_stop: int = 0
    peer_stops: int = 0
    peer_delays: int = 0
    reset_after: int = -1


def random_plan(seed: int) -> list[Stream]:
    chance = random.Random(seed)

    def amount() -> int:
        return chance.choice([0, 1, chance.randrange(1000), chance.randrange(300 * KIB), chance.randrange(4 * MIB)])

    def pause() -> int:
        return chance.randrange(400) if chance.random() < 0.2 else 0

    return [
        Stream(
            opened_by_us=chance.random() < 0.5,
            from_us=amount(),
            from_peer=amount(),
            we_stop=pause(),
            peer_stops=pause(),
            peer_delays=pause(),
            reset_after=chance.randrange(1 * MIB) if chance.random() < 0.1 else -1,
        )
        for _ in range(chance.randrange(1, 60))
    ]


def by_id(plan: list[Stream], side: str) -> dict[int, Stream]:
    """By the ids that the streams get when we are on this side."""
    first_of_ours, first_of_peers = (1, 2) if side == "client" else (2, 1)
    found = {first_of_ours + 2 * n: s for n, s in enumerate(s for s in plan if s.opened_by_us)}
    found |= {first_of_peers + 2 * n: s for n, s in enumerate(s for s in plan if not s.opened_by_us)}
    return dict(sorted(found.items()))


def assert_agreed(plan: Stream, ours: Any, peers: Any) -> None:
    """Every byte of both directions arrived, in order, and then the end."""
    assert not any(each.get(way) for each in (ours, peers) for way in ("reset", "reset_by_us", "reset_by_peer"))
    assert (ours["ended"], ours.get("over", True), peers["ended"]) == (True, True, True)
    assert (ours["sent"], peers["sent"]) == (plan.from_us, plan.from_peer)
    assert (peers["received"], peers["received_sha256"]) == (ours["sent"], ours["sent_sha256"])
    assert (ours["received"], ours["received_sha256"]) == (peers["sent"], peers["sent_sha256"])
