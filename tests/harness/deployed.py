"""The deployed server (tests/interop/go) as a running program."""

from dataclasses import dataclass

from .processes import Process


@dataclass
class DeployedServer:
    process: Process
    port: int
