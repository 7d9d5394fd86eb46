"""What the native module says of an argument that it cannot use."""

from __future__ import annotations

__all__ = ["ArgumentError"]


class ArgumentError(ValueError):
    """An argument that cannot be used. Its text is ``ARGUMENT: PROBLEM``."""

    def __init__(self, argument: str, problem: str, index: int | None = None) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        """Its name in the signature."""
        self.problem = problem
        """What is wrong with it, without its name."""
        self.index = index
        """Which one, from 0 on, where it is a list."""
