"""``ech-workers demo``."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from ech_workers.cli import findings, logs, proxy
from ech_workers.cli.options import log_options, option, status_option
from ech_workers.config import authority

if TYPE_CHECKING:
    from types import FrameType

    from ech_workers.config import Mode
    from ech_workers.demo import Demo
    from ech_workers.finding import Row


@click.command()
@click.option("--check", is_flag=True, help="Send requests through every combination, say what happened, and end.")
@option(
    "--listen",
    default="127.0.0.1:1080",
    show_default=True,
    metavar="ADDR:PORT",
    help="The SOCKS5 and HTTP port (--check takes free ones).",
)
@status_option
@option("--plain", is_flag=True, help="Single lines instead of the live table.")
@log_options
def demo(
    check: bool,
    listen: str,
    status_listen: tuple[str, ...],
    plain: bool,
    verbose: bool,
    log_level: str,
    log_file: str | None,
) -> int:
    """The whole tunnel on loopback: a private authority, a DoH resolver, a server with ECH keys, a target, the proxy.

    Nothing needs to be installed or set up, and nothing is left behind. --check exits with 0, or with 1 after naming the
    layer that failed.
    """
    from pathlib import Path

    _end_in_order()
    # The check says itself what happened; the log only disturbs it unless asked for.
    quiet = check and not verbose and log_level == "info"
    logs.configure("error" if quiet else log_level, Path(log_file) if log_file else None, verbose=verbose)
    from ech_workers.demo import Demo

    if check:
        return _check()
    with Demo() as running:
        config = running.client(mode="yamux", listen=listen, status_listen=status_listen)
        proxy.run(config, plain=plain, notes=lambda ports: notes(running, ports[0]))
    return 0


_ENDING = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)


def _end_in_order() -> None:
    """Has every signal that would end the process end it by KeyboardInterrupt, so that the temporary folder goes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Once: what winds things up is not to be interrupted.
        for other in _ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


def notes(running: Demo, port: tuple[str, int]) -> list[str]:
    """What the demonstration says below the table."""
    address = authority(*port)
    return [
        "Everything runs on this machine. Try, in another terminal:",
        f"  curl --proxy socks5h://{address} {running.target_url}",
        f"  curl --proxy http://{address} {running.target_url}",
        "Ctrl-C ends it.",
    ]


def _check() -> int:
    from ech_workers.demo import Check, Demo

    def report(row: Row) -> None:
        findings.show(row.ok, row.layer, f"{row.subject}: {row.what}", ms=row.ms, advice=row.advice)

    modes: tuple[Mode, ...] = ("yamux", "simple")
    with Demo() as running:
        check = Check(running, report)
        for mode in modes:
            click.echo(f"{mode} mode")
            failed = check.run(mode)
            if failed is not None:
                click.echo(f"failed at the layer {failed}")
                return 1
        counted = running.server.snapshot()
    click.echo(
        f"all passed; the server counted {counted.ech_accepted} handshakes with ECH, {counted.ech_absent} without"
    )
    return 0
