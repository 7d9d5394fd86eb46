"""sing-box as another tunnel that multiplexes: vless over WebSocket over TLS 1.3 with ECH, yamux. Only where it is at hand."""

import base64
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from harness.ech import EchKey
from harness.processes import Process, run
from harness.tunnel import PATH, SERVER_NAME

from .subjects import Bench, Subject, free_port, local, wait_listening

VARIABLE = "SING_BOX"
ADDRESS = "127.0.0.1"


def program() -> str | None:
    return os.environ.get(VARIABLE) or shutil.which("sing-box")


def version() -> str | None:
    found = program()
    if found is None:
        return None
    said = run(found, "version").stdout.partition("\n")[0].replace("version ", "")
    # Built as a Go module, it does not know its own.
    module = run("go", "version", "-m", found).stdout if said.endswith("unknown") and shutil.which("go") else ""
    known = re.search(r"\bmod\s+\S+/sing-box\s+v(\S+)", module)
    return f"sing-box {known[1]}" if known else said


def subject(bench: Bench) -> Subject | None:
    """One session, as the tunnel has; None where it is not installed."""
    found = program()
    if found is None:
        return None
    outer, inner, user = free_port(), free_port(), str(uuid.uuid4())
    site = bench.site
    bench.folder.mkdir(parents=True, exist_ok=True)
    keys, configurations = bench.folder / "sing-box-keys.pem", bench.folder / "sing-box-configurations.pem"
    keys.write_text(pem("ECH KEYS", ech_keys(site.key)))
    configurations.write_text(pem("ECH CONFIGS", site.key.config_list))
    transport = {"type": "ws", "path": PATH}
    server_tls = {
        "enabled": True,
        "min_version": "1.3",
        "server_name": SERVER_NAME,
        "certificate_path": str(site.inner.chain),
        "key_path": str(site.inner.key),
        "ech": {"enabled": True, "key_path": str(keys)},
    }
    server = {
        "type": "vless",
        "listen": ADDRESS,
        "listen_port": outer,
        "users": [{"uuid": user}],
        "tls": server_tls,
        "transport": transport,
        "multiplex": {"enabled": True},
    }
    client_tls = {
        "enabled": True,
        "server_name": SERVER_NAME,
        "certificate_path": str(site.authority.path),
        "ech": {"enabled": True, "config_path": str(configurations)},
    }
    client = {
        "type": "vless",
        "server": ADDRESS,
        "server_port": outer,
        "uuid": user,
        "tls": client_tls,
        "transport": transport,
        "multiplex": {"enabled": True, "protocol": "yamux", "max_connections": 1},
    }
    proxy = {"type": "mixed", "listen": ADDRESS, "listen_port": inner}
    ends = (
        start(bench, found, "server", outer, server, {"type": "direct"}),
        start(bench, found, "client", inner, proxy, client),
    )
    return Subject("sing-box", ends[1], ends[0], local(inner), local)


def start(bench: Bench, found: str, end: str, port: int, inbound: dict[str, Any], outbound: dict[str, Any]) -> Process:
    file = bench.folder / f"sing-box-{end}.json"
    file.write_text(json.dumps({"log": {"level": "error"}, "inbounds": [inbound], "outbounds": [outbound]}))
    process = bench.processes.start(found, "run", "-c", file)
    wait_listening(port)
    return process


def ech_keys(key: EchKey) -> bytes:
    """The form in which sing-box reads keys: the private key, then its configuration, each after its length."""
    private = load_pem_private_key(Path(key.path).read_bytes(), None)
    secret = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    # Without the length in front of the list, which has but one configuration.
    return b"".join(len(part).to_bytes(2, "big") + part for part in (secret, key.config_list[2:]))


def pem(label: str, content: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(content).decode()}-----END {label}-----\n"
