"""Groups of commands that name the nearest command when there is none of the name that was given."""

from __future__ import annotations

import click

__all__ = ["Group"]


class Group(click.Group):
    """A group of commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from ech_workers.options.sources import nearest

            near = nearest(args[0], self.list_commands(ctx))
            if near is None:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}. Did you mean {near!r}?", ctx) from None
