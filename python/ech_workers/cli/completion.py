"""``ech-workers completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ech_workers.cli import PROGRAM, commands


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    bash: eval "$(ech-workers completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; fish: into
    ~/.config/fish/completions/ech-workers.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(commands, {}, PROGRAM, "_ECH_WORKERS_COMPLETE").source())
