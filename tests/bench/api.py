"""What the Python API promises: deadlines, openings that hold up nobody, Ctrl-C, and its rates beside the local port."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from ech_workers import TargetTimeout, Tunnel, aio
from ech_workers.integrations.httpx import AsyncTunnelTransport
from harness import socks
from harness.processes import python_program
from harness.silent import Silent
from harness.tunnel import PATH, SERVER_NAME, TOKEN

from . import ROOT
from .report import Table, median
from .subjects import Bench

PENDING = 10_000
OPENS = 200
REQUESTS = 1000
GIBIBYTE = 1 << 30
PAIRS = 4
TIMEOUT = 120.0
# httpx looks through all requests of a client for each that starts or ends: with 1,000 in one client, that is most of what
# would be measured, and takes longer than the port waits for a program's first bytes.
CLIENTS = 10
NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


def table(bench: Bench) -> Table:
    """Each figure with what it is to reach."""
    site = bench.site
    program = bench.processes.start(
        *python_program("harness.targets"), str(bench.folder), env={"PYTHONPATH": str(ROOT / "tests")}
    )
    targets = program.wait_event("listening")
    server = site.server("--max-streams", "30000", "--connect-timeout", "600")
    options = {
        "server": f"{SERVER_NAME}:{server.port}{PATH}",
        "token": TOKEN,
        "doh_server": site.resolver.url,
        "doh_ip": "127.0.0.1",
        "ca_file": site.authority.path,
        "cache_dir": "",
        "max_connections": 50_000,
    }
    pending = PENDING // 10 if bench.quick else PENDING
    # One gibibyte in all.
    size = (GIBIBYTE // 8 if bench.quick else GIBIBYTE) // PAIRS
    made = Table("The Python API", ["figure", "measured", "to reach"])
    with Silent() as silent:
        took = median(deadline(options, silent) for _ in range(bench.rounds))
        made.rows.append(("`timeout=1` to a target that does not answer", f"{took:.2f} s", "1.1 s"))
        alone, beside, after = asyncio.run(openings(options, silent, targets["echo"], pending))
        for what, value in (("pending ones", beside), ("cancelled ones", after)):
            made.rows.append(
                (f"one open beside {pending} {what}, to one alone", f"{value / alone:.2f} times", "at most 2 times")
            )
        made.rows.append(
            ("Ctrl-C in any call, at most", f"{interrupts(options, silent, targets['echo']):.2f} s", "0.2 s")
        )
    rates = median(asyncio.run(requests(options, targets["http"])) for _ in range(bench.rounds))
    made.rows.append(
        (f"{REQUESTS} requests at a time with httpx, to the local SOCKS5 port", f"{rates:.2f}", "at least 0.8")
    )
    rates = median(reading(options, targets["http"], size) for _ in range(bench.rounds))
    made.rows.append(
        (f"{size * PAIRS >> 20} MiB read by `recv_into`, to the local port", f"{rates:.2f}", "at least 0.9")
    )
    made.notes.append(
        "Rates are ratios: of what the API carries a second to what the local port of the same tunnel does."
    )
    return made


def deadline(options: dict[str, Any], silent: Silent) -> float:
    with Tunnel(**options) as tunnel:
        started = time.perf_counter()
        try:
            tunnel.create_connection(silent.address, timeout=1)
        except TargetTimeout:
            return time.perf_counter() - started
    raise SystemExit("the target that does not answer was reached")


async def openings(options: dict[str, Any], silent: Silent, echo: int, count: int) -> tuple[float, float, float]:
    """Seconds for one open: alone, beside pending ones, and right after these were cancelled."""
    # A session has at most 4096 streams.
    async with aio.Tunnel(**options, sessions=4) as tunnel:
        while len(tunnel.snapshot().sessions) < 4:
            await asyncio.sleep(0.05)

        async def one() -> float:
            taken = []
            for _ in range(OPENS):
                started = time.perf_counter()
                (await tunnel.create_connection(("127.0.0.1", echo), TIMEOUT)).close()
                taken.append(time.perf_counter() - started)
            return median(taken)

        await one()
        alone = await one()
        pending = [asyncio.create_task(tunnel.create_connection(silent.address, TIMEOUT)) for _ in range(count)]
        while sum(session.streams for session in tunnel.snapshot().sessions) < count:
            await asyncio.sleep(0.05)
        beside = await one()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return alone, beside, await one()


def interrupts(options: dict[str, Any], silent: Silent, echo: int) -> float:
    """The longest that one of the calls that wait took to notice SIGINT, seconds."""
    with Tunnel(**options) as tunnel:

        def closing() -> None:
            with Tunnel(**options) as other, other.create_connection(("127.0.0.1", echo)):
                other.close(TIMEOUT)

        lazy = {**options, "server": "hidden.test:9/", "server_ip": "192.0.2.1", "ech": False, "connect": "lazy"}
        with Tunnel(**lazy) as unreachable:
            calls: list[Callable[[], object]] = [
                lambda: tunnel.create_connection(silent.address, timeout=TIMEOUT),
                closing,
                lambda: unreachable.wait_ready(TIMEOUT, patient=True),
                lambda: tunnel.create_connection(("127.0.0.1", echo)).recv(1),
            ]
            return max(interrupted(call) for call in calls)


def interrupted(call: Callable[[], object]) -> float:
    sent = 0.0

    def send() -> None:
        nonlocal sent
        time.sleep(0.5)
        sent = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        call()
    except KeyboardInterrupt:
        return time.perf_counter() - sent
    finally:
        thread.join()
    raise SystemExit("a call that should wait came back")


async def requests(options: dict[str, Any], http: int) -> float:
    """The rate of the transport, to that of the local port."""
    url = f"http://127.0.0.1:{http}/bytes/100"

    async def rate(clients: list[httpx.AsyncClient]) -> float:
        started = time.perf_counter()
        answers = await asyncio.gather(*(clients[number % CLIENTS].get(url) for number in range(REQUESTS)))
        taken = time.perf_counter() - started
        if any(len(answer.content) != 100 for answer in answers):
            raise SystemExit("an answer is not whole")
        return REQUESTS / taken

    async with (
        aio.Tunnel(**options) as tunnel,
        await tunnel.listen("127.0.0.1") as port,
        contextlib.AsyncExitStack() as open_,
    ):
        proxy = f"socks5://{port.host}:{port.port}"
        by_api, by_port = [], []
        for _ in range(CLIENTS):
            transport = AsyncTunnelTransport(tunnel, limits=NO_LIMITS)
            api = httpx.AsyncClient(transport=transport, timeout=TIMEOUT)
            by_api.append(await open_.enter_async_context(api))
            other = httpx.AsyncClient(proxy=proxy, limits=NO_LIMITS, timeout=TIMEOUT, trust_env=False)
            by_port.append(await open_.enter_async_context(other))
        await rate(by_port)
        ratios = []
        for number in range(PAIRS):
            if number % 2:
                value = await rate(by_api)
                ratios.append(value / await rate(by_port))
            else:
                value = await rate(by_port)
                ratios.append(await rate(by_api) / value)
        return median(ratios)


def reading(options: dict[str, Any], http: int, size: int) -> float:
    """The rate of one stream read by recv_into, to that through the local port."""

    def rate(connection: socket.socket) -> float:
        space = bytearray(1 << 18)
        with connection:
            connection.settimeout(TIMEOUT)
            started = time.perf_counter()
            connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received = 0
            while received < size:
                count = connection.recv_into(space)
                if not count:
                    raise SystemExit("the answer is not whole")
                received += count
            return received / (time.perf_counter() - started)

    with Tunnel(**options) as tunnel, tunnel.listen("127.0.0.1") as port:

        def by_api() -> float:
            return rate(tunnel.create_connection(("127.0.0.1", http), TIMEOUT))

        def by_port() -> float:
            return rate(socks.connect(port.address, "127.0.0.1", http, timeout=TIMEOUT))

        return by_turns(by_api, by_port)


def by_turns(ours: Callable[[], float], yardstick: Callable[[], float]) -> float:
    """The median ratio of pairs, after one that does not count; who goes first changes."""
    yardstick()
    ratios = []
    for number in range(PAIRS):
        if number % 2:
            value = ours()
            ratios.append(value / yardstick())
        else:
            value = yardstick()
            ratios.append(ours() / value)
    return median(ratios)
