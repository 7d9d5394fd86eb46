"""Small requests, alone and beside one bulk stream of the same session; new connections, 64 at a time."""

from dataclasses import dataclass

from . import sing_box
from .report import Table, median, with_ratio
from .subjects import Bench, Subject, direct

WORKERS = 64


def subjects(bench: Bench, port: int) -> list[Subject]:
    return [found for found in (direct(), bench.stunnel(port), bench.tunnel("yamux"), sing_box.subject(bench)) if found]


def requests(bench: Bench) -> Table:
    _, port = bench.target()
    compared = subjects(bench, port)
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    count = 200 if bench.quick else 1000
    for _ in range(bench.rounds):
        for case in ("alone", "beside"):
            for subject in compared:
                found = bench.load(
                    *("requests", subject.proxy, subject.address(port), count),
                    *(("beside",) if case == "beside" else ()),
                )
                taken.setdefault((case, subject.name), []).append((found["p50"], found["p99"]))
    made = Table("Small requests", ("64 bytes there and back", "", "p50 ms", "p99 ms"))
    for (case, name), pairs in taken.items():
        columns = [
            with_ratio(median(pair[which] for pair in pairs), median(pair[which] for pair in taken[case, "direct TCP"]))
            for which in (0, 1)
        ]
        made.rows.append(("beside a bulk stream" if case == "beside" else case, name, *columns))
    made.notes.append(
        "On an open connection, one every 2 ms. Beside a bulk stream down: on the same session with the tunnel, on a "
        "connection of its own with the others. In brackets the ratio to direct TCP."
    )
    return made


@dataclass
class Rate:
    a_second: float
    client: float
    server: float
    failed: int


def connections(bench: Bench) -> Table:
    _, port = bench.target()
    compared = subjects(bench, port)
    taken: dict[str, list[Rate]] = {}
    seconds = 2 if bench.quick else 4
    for _ in range(bench.rounds):
        for subject in compared:
            before = subject.cpu_seconds()
            found = bench.load("connections", subject.proxy, subject.address(port), WORKERS, seconds)
            client, server = (
                (after - earlier) * 1e6 / found["done"]
                for after, earlier in zip(subject.cpu_seconds(), before, strict=True)
            )
            rate = Rate(found["done"] / found["seconds"], client, server, found["failed"])
            taken.setdefault(subject.name, []).append(rate)
    yardstick = median(rate.a_second for rate in taken["direct TCP"])
    made = Table(
        "New connections, 64 at a time",
        ("", "a second", "client CPU ms per 1,000", "server CPU ms per 1,000", "failed"),
    )
    for name, rates in taken.items():
        made.rows.append(
            (
                name,
                with_ratio(median(rate.a_second for rate in rates), yardstick, 0),
                f"{median(rate.client for rate in rates):.0f}" if name != "direct TCP" else "",
                f"{median(rate.server for rate in rates):.0f}" if name != "direct TCP" else "",
                str(sum(rate.failed for rate in rates)),
            )
        )
    made.notes.append("Each connects, sends a byte, and ends when it is back. The load itself runs on the same cores.")
    return made
