"""``ech-workers demo``."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ech_workers.cli import findings, logs, proxy
from ech_workers.cli.options import DEMO_NAMES, DEMO_PREFIX, demo_options, given, verbose_option
from ech_workers.config import ClientConfig, authority
from ech_workers.errors import ConfigError
from ech_workers.options.client import CLIENT
from ech_workers.options.sources import environment, merge

if TYPE_CHECKING:
    from types import FrameType

    from ech_workers.config import Mode
    from ech_workers.demo import Demo
    from ech_workers.finding import Row


@click.command()
@click.option("--check", is_flag=True, help="Send requests through every combination, say what happened, and end.")
@demo_options
@click.option("--plain", is_flag=True, help="Single lines instead of the live table.")
@verbose_option
@click.pass_context
def demo(ctx: click.Context, /, check: bool, plain: bool, verbose: bool, **options: Any) -> int:
    """The whole tunnel on loopback: a private authority, a DoH resolver, a server with ECH keys, a target, the proxy.

    Nothing needs to be installed or set up, and nothing is left behind. --check exits with 0, or with 1 after naming the
    layer that failed.
    """
    _end_in_order()
    outer = merge(CLIENT, [environment(CLIENT, DEMO_PREFIX, names=DEMO_NAMES), given(ctx, options)])
    # The check says itself what happened; the log only disturbs it unless asked for.
    quiet = check and not verbose and "log_level" not in outer.given
    try:
        config = ClientConfig.of({"server": "demo.test", "cache_dir": "", **outer.values})
    except ConfigError as error:
        raise outer.blame(error) from None
    logs.configure(config, config.log_file, verbose=verbose, level="error" if quiet else None)
    from ech_workers.demo import Demo

    if check:
        return _check()
    with Demo() as running:
        config = msgspec.structs.replace(
            running.client(mode="yamux", listen="0"),
            listen=config.listen,
            status_listen=config.status_listen,
            control="",
        )
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
