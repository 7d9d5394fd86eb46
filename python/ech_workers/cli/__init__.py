"""The command line. Each command's module is imported when the command is used, for the sake of start-up and memory."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NoReturn

import click

from ech_workers.cli.groups import Group
from ech_workers.errors import TunnelError

__all__ = ["main"]

PROGRAM = "ech-workers"

# Name, module that holds a click command of that name, and the line in the list.
_COMMANDS: dict[str, tuple[str, str]] = {
    "proxy": ("ech_workers.cli.proxy", "A local SOCKS5 and HTTP port whose traffic goes through the tunnel."),
    "server": ("ech_workers.cli.server", "The other end of the tunnel."),
    "check": ("ech_workers.cli.check", "Say layer by layer what works, and what to try."),
    "status": ("ech_workers.cli.ask", "What a running proxy or server is doing, and why."),
    "connections": ("ech_workers.cli.ask", "List the open connections of a running proxy, or end some."),
    "reload": ("ech_workers.cli.ask", "Have it read its configuration again."),
    "logs": ("ech_workers.cli.ask", "Show its last log lines, and follow them."),
    "stop": ("ech_workers.cli.ask", "End it in order."),
    "run": ("ech_workers.cli.within", "Start a program that uses the running proxy."),
    "env": ("ech_workers.cli.within", "Print the variables by which programs find the running proxy."),
    "connect": ("ech_workers.cli.within", "Connect standard input and output with a target, for ssh."),
    "share": ("ech_workers.cli.share", "Print one link, with its QR code, for all that a client needs."),
    "config": ("ech_workers.cli.config", "The configuration file: try it, show what counts, write one."),
    "keygen": ("ech_workers.cli.keygen", "Make an ECH key and the DNS record for it."),
    "worker": ("ech_workers.cli.worker", "Write a Cloudflare Worker to be the other end."),
    "demo": ("ech_workers.cli.demo", "The whole tunnel on loopback: try it without a server."),
    "completion": ("ech_workers.cli.completion", "Print the completion script for a shell."),
}


class Commands(Group):
    """A group that imports a command only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry[0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ech_workers.version import told

        click.echo(f"{PROGRAM} {told()}")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 well, 1 internal, 2 usage, then one a layer: 3 resolver, 4 tcp, 5 tls, 6 ech, 7 certificate,"
    " 8 websocket, 9 token, 10 yamux, 11 target, 12 local port.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Local programs' traffic through WebSocket sessions over TLS 1.3 with Encrypted Client Hello."""
    if ctx.invoked_subcommand is None:
        from ech_workers import control

        if control.find("proxy"):
            from ech_workers.cli.ask import status

            ctx.invoke(status, role="proxy", path=None, as_json=False, watch=False)
            click.echo("\n`ech-workers --help` lists the commands.")
            return
        click.echo(ctx.get_help())
        click.echo("\nTo see all of it at work on this machine: ech-workers demo")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits the process."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code. A failure is one line on standard error."""
    verbose = any(_is_verbose_flag(argument) for argument in arguments)
    undecodable = _undecodable(arguments)
    if undecodable is not None:
        _complain(f"usage: {undecodable} is not in the encoding of this terminal ({sys.getfilesystemencoding()})")
        return click.UsageError.exit_code
    try:
        color = None if _may_color() else False
        result = commands.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, color=color)
    except TunnelError as error:
        _complain(error.line())
        if verbose and error.detail:
            click.echo(error.detail, err=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        # A group of commands alone: what it prints is its help.
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else PROGRAM
        _complain(f"usage: {_flat(error.format_message())}; `{command} --help` lists the options")
        return error.exit_code
    except click.ClickException as error:
        _complain(_flat(error.format_message()))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130  # 128 + SIGINT, as shells count
    except SystemExit:
        if "_ECH_WORKERS_COMPLETE" in os.environ:
            raise
        # How click ends when the output is a pipe that nobody reads any more: whoever read it has seen enough.
        return _without_output(0)
    except OSError as error:
        if error.errno not in _OUTPUT_FAILURES:
            return _defect(error, verbose)
        if error.errno == errno.EPIPE:
            return _without_output(0)
        _complain(f"local: cannot write the output: {error.strerror}")
        return _without_output(1)
    except Exception as error:
        return _defect(error, verbose)
    return result if isinstance(result, int) else 0


_OUTPUT_FAILURES = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _defect(error: Exception, verbose: bool) -> int:
    _complain(f"internal: {type(error).__name__}: {_flat(str(error))}; this is a defect, -v shows where")
    if verbose:
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True)
    return 1


def _without_output(code: int) -> int:
    """The exit code; what is still in the output's buffer is dropped, so that the interpreter's end cannot fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _undecodable(arguments: list[str]) -> str | None:
    """The option whose value, or the argument which, holds bytes that are no text here; None: there is none."""
    for number, argument in enumerate(arguments):
        if not any("\udc80" <= character <= "\udcff" for character in argument):
            continue
        if argument.startswith("-"):
            return argument.partition("=")[0].encode("ascii", "backslashreplace").decode()
        before = arguments[number - 1] if number else ""
        return f"the value of {before}" if before.startswith("-") else f"argument {number + 1}"
    return None


def _is_verbose_flag(argument: str) -> bool:
    return argument == "--verbose" or (argument.startswith("-v") and set(argument[1:]) == {"v"})


def _flat(message: str) -> str:
    return " ".join(message.split()).removesuffix(".")


def _complain(line: str) -> None:
    click.secho(f"{PROGRAM}: {line}", fg="red" if sys.stderr.isatty() and _may_color() else None, err=True)


def _may_color() -> bool:
    """Not where NO_COLOR is set to anything (no-color.org)."""
    return not os.environ.get("NO_COLOR")
