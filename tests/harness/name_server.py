"""A name server on a loopback address of its own, and how a program is started so that it is the system's."""

import os
import random
import shutil
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

MAY_MOUNT = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a name server of the system's needs root, for port 53 and a mount namespace",
)


class NameServer:
    """Answers for the names it has, says NXDOMAIN for others, and never answers for names below `dead`."""

    def __init__(self, folder: Path, names: dict[str, list[str]], hosts: str = "") -> None:
        self.questions: list[str] = []
        self._names = names
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        while True:
            address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
            try:
                self._socket.bind((address, 53))
                break
            except OSError:
                continue
        self.configuration = folder / "resolv.conf"
        self.configuration.write_text(f"nameserver {address}\n")
        self._hosts = folder / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost\n{hosts}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def prefix(self) -> list[str]:
        """Put before a command: the command asks this name server and has these hosts."""
        script = 'mount --bind "$0" /etc/resolv.conf && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        private = ["unshare", "--mount", "--propagation", "private"]
        return [*private, "sh", "-c", script, str(self.configuration), str(self._hosts)]

    def stop(self) -> None:
        # An empty datagram ends the thread.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            wire, sender = self._socket.recvfrom(4096)
            if not wire:
                return
            query = dns.message.from_wire(wire)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True).lower()
            self.questions.append(name)
            if name.endswith("dead"):
                continue
            response = dns.message.make_response(query)
            response.flags |= dns.flags.RA
            addresses = self._names.get(name)
            if addresses is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
            else:
                kind = dns.rdatatype.to_text(question.rdtype)
                own = [address for address in addresses if (":" in address) == (kind == "AAAA")]
                if own and kind in ("A", "AAAA"):
                    response.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", kind, own))
            self._socket.sendto(response.to_wire(), sender)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
