"""``python -m ech_workers``."""

from ech_workers.cli import main

main()
