"""The directory of ECH keys, as an operator changes it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ech_workers import Tunnel, _native
from ech_workers.cli import main
from ech_workers.config import ServerConfig
from ech_workers.demo import Demo
from ech_workers.errors import ConfigError
from ech_workers.keys import KeyDirectory
from ech_workers.server import TunnelServer
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


def write(folder: Path, name: str, number: int, *, public_name: str = "public.test", modified: int = 1_000) -> bytes:
    pem, configs = _native.generate_ech_key(number, public_name)
    (folder / name).write_bytes(pem)
    os.utime(folder / name, (modified, modified))
    return configs


def test_the_newest_key_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "a.pem", 1, modified=1_000)
    write(tmp_path, "b.pem", 2, modified=3_000)
    write(tmp_path, "c.pem", 3, modified=2_000)
    directory = KeyDirectory(tmp_path)
    assert directory.refresh()
    assert [key.config_ids for key in directory.keys] == [(2,), (3,), (1,)]
    assert directory.keys[0].public_names == ("public.test",)


def test_changes_are_seen_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "a.pem", 1)
    directory = KeyDirectory(tmp_path)
    assert directory.refresh()
    assert not directory.refresh()
    write(tmp_path, "b.pem", 2)
    assert directory.refresh()
    (tmp_path / "a.pem").unlink()
    assert directory.refresh()
    assert [key.config_ids for key in directory.keys] == [(2,)]
    (tmp_path / "notes.txt").write_text("not a key")
    assert not directory.refresh()


def test_a_key_replaced_within_the_same_second_is_seen(tmp_path: Path) -> None:
    write(tmp_path, "a.pem", 1)
    directory = KeyDirectory(tmp_path)
    directory.refresh()
    (tmp_path / "new").mkdir()
    write(tmp_path / "new", "a.pem", 2)
    (tmp_path / "new" / "a.pem").replace(tmp_path / "a.pem")
    assert directory.refresh()
    assert [key.config_ids for key in directory.keys] == [(2,)]


def test_a_file_that_is_no_key_is_said_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "good.pem", 1)
    (tmp_path / "noise.pem").write_bytes(b"-----BEGIN NOTHING-----")
    (tmp_path / "large.pem").write_bytes(b"x" * 100_000)
    (tmp_path / "dangling.pem").symlink_to(tmp_path / "nowhere")
    configs = base64.encodebytes(_native.generate_ech_key(9, "public.test")[1])
    (tmp_path / "public.pem").write_bytes(b"-----BEGIN ECHCONFIG-----\n" + configs + b"-----END ECHCONFIG-----\n")
    directory = KeyDirectory(tmp_path)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        directory.refresh()
        directory.refresh()
    assert [key.path.name for key in directory.keys] == ["good.pem"]
    said = [record.getMessage() for record in caplog.records]
    assert sorted(Path(line.split(" ")[0]).name for line in said) == ["large.pem", "noise.pem", "public.pem"]
    assert any("public.pem is left out: it has no private key" in line for line in said)


def test_a_file_that_cannot_be_read_is_taken_as_soon_as_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that root made, before its chown: nothing about the file changes but who may read it."""
    write(tmp_path, "old.pem", 1, modified=1_000)
    write(tmp_path, "new.pem", 2, modified=2_000)
    locked = True
    real = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if locked and self.name == "new.pem":
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    directory = KeyDirectory(tmp_path)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        assert directory.refresh()
        assert not directory.refresh()
        assert [key.path.name for key in directory.keys] == ["old.pem"]
        locked = False
        assert directory.refresh()
    assert [key.path.name for key in directory.keys] == ["new.pem", "old.pem"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'new.pem'} cannot be read: Permission denied; it is tried again"
    ]


def test_a_key_in_use_stays_while_it_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.pem", 1)
    directory = KeyDirectory(tmp_path)
    assert directory.refresh()
    (tmp_path / "a.pem").chmod(0o640)
    real = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    assert not directory.refresh()
    assert [key.config_ids for key in directory.keys] == [(1,)]
    monkeypatch.setattr(Path, "open", real)
    assert not directory.refresh()


def test_two_keys_with_one_id_cannot_both_serve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "old.pem", 5, modified=1_000)
    write(tmp_path, "new.pem", 5, modified=2_000)
    directory = KeyDirectory(tmp_path)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        directory.refresh()
    assert [key.path.name for key in directory.keys] == ["new.pem"]
    assert "old.pem is left out: its config id is that of new.pem" in caplog.text


def test_a_folder_with_the_name_of_a_key_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.pem").mkdir()
    directory = KeyDirectory(tmp_path)
    assert not directory.refresh()
    assert directory.keys == ()


def test_the_newest_file_of_each_public_name_is_handed_out(tmp_path: Path) -> None:
    write(tmp_path, "a.pem", 1, modified=1_000)
    write(tmp_path, "b.pem", 2, modified=2_000)
    write(tmp_path, "c.pem", 3, public_name="other.test", modified=500)
    # Another maker's file: text around the PEM, lines of another length, no mark of its role.
    pem = _native.generate_ech_key(4, "third.test")[0].decode()
    key, _, configs = pem.partition("-----BEGIN ECHCONFIG-----")
    joined = "".join(configs.partition("-----END")[0].split())
    (tmp_path / "theirs.pem").write_text(
        f"# ECH\n{key}\n-----BEGIN ECHCONFIG-----\n{joined}\n-----END ECHCONFIG-----\n"
    )
    os.utime(tmp_path / "theirs.pem", (100, 100))
    directory = KeyDirectory(tmp_path)
    directory.refresh()
    assert {key.path.name: key.retry for key in directory.keys} == {
        "b.pem": True,
        "a.pem": False,
        "c.pem": True,
        "theirs.pem": True,
    }
    os.utime(tmp_path / "a.pem", (3_000, 3_000))
    assert directory.refresh()
    assert [key.path.name for key in directory.keys if not key.retry] == ["b.pem"]


def test_a_rotation_hands_out_the_new_key_and_forgets_the_old_one_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """keygen --rotate beside a running server: clients with the new, the old, and a removed key get through."""

    def rotate(overlap: str) -> dict[str, Any]:
        arguments = ["keygen", "--rotate", "--overlap", overlap, "--public-name", name, "--out", str(demo.keys)]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        assert ended.value.code == 0
        made: dict[str, Any] = json.loads(capsys.readouterr().out)
        return made

    with Demo() as demo, caplog.at_level(logging.INFO, "ech_workers"):
        (entry,) = _native.parse_ech_config_list(demo.ech_configs)
        name = entry.public_name or ""
        # As if the demonstration's key had been made by keygen.
        first = demo.keys / f"{entry.config_id}.pem"
        (demo.keys / "demo.pem").rename(first)
        second = rotate("1h")
        assert [Path(kept["file"]) for kept in second["kept"]] == [first]
        assert second["removed"] == []
        wait_for(lambda: f"{first.name} ({name}; for decryption only)" in caplog.text)
        new = base64.b64decode(second["ech_config_list"])
        assert connect(demo, new) == 0
        assert connect(demo, demo.ech_configs) == 0
        learned: list[bytes] = []
        assert connect(demo, _native.generate_ech_key(_other(second, entry), name)[1], learned) == 1
        assert learned == [new]
        third = rotate("0")
        assert {Path(path) for path in third["removed"]} == {first, Path(second["file"])}
        wait_for(lambda: f"now serving with 1 ECH key: {third['config_id']}.pem" in caplog.text)
        assert connect(demo, new) == 1
        assert connect(demo, base64.b64decode(third["ech_config_list"])) == 0
        offered = demo.server.snapshot().ech_by_config
        assert offered[second["config_id"]] == 3
        assert offered[entry.config_id or 0] == 1
        assert offered[third["config_id"]] == 2
        assert f"id {second['config_id']}, no key: 3" in demo.server.summary()
        assert f"{third['config_id']}.pem: 2" in demo.server.summary()


def _other(made: dict[str, Any], entry: _native.EchConfig) -> int:
    """An id that no key has."""
    return next(number for number in range(256) if number not in (made["config_id"], entry.config_id))


def test_a_rotation_leaves_other_names_and_other_makers_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "1.pem", 1, modified=1_000)
    write(tmp_path, "theirs.pem", 2, modified=2_000)
    write(tmp_path, "3.pem", 3, public_name="other.test", modified=1_000)
    write(tmp_path, "4.pem", 4, modified=3_000)
    (tmp_path / "5.pem").write_text("no key")
    with pytest.raises(SystemExit):
        main(["keygen", "--rotate", "--public-name", "public.test", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert f"removed            {tmp_path / '1.pem'}" in out
    assert f"{tmp_path / 'theirs.pem'}, yours to remove" in out
    assert f"{tmp_path / '4.pem'}, removed by a rotation in 24 h 0 min or later" in out
    left = {path.name for path in tmp_path.iterdir()}
    assert left > {"theirs.pem", "3.pem", "4.pem", "5.pem"}
    assert "1.pem" not in left


def test_a_new_key_is_the_newest_even_beside_a_file_from_the_future(tmp_path: Path) -> None:
    write(tmp_path, "1.pem", 1, modified=4_000_000_000)
    with pytest.raises(SystemExit):
        main(["keygen", "--rotate", "--public-name", "public.test", "--out", str(tmp_path)])
    directory = KeyDirectory(tmp_path)
    directory.refresh()
    assert [(key.path.name == "1.pem", key.retry) for key in directory.keys] == [(False, True), (True, False)]


def test_keys_are_swapped_while_the_server_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new key in, the old one out: clients that know either one, or neither, get through."""
    with Demo() as demo, caplog.at_level(logging.INFO, "ech_workers"):
        number = _native.parse_ech_config_list(demo.ech_configs)[0].config_id
        assert number is not None
        new = write(demo.keys, "new.pem", (number + 1) % 256, modified=2_000_000_000)
        wait_for(lambda: "now serving with 2 ECH keys: new.pem" in caplog.text)
        for configs in (demo.ech_configs, new):
            connect(demo, configs)
        (demo.keys / "demo.pem").unlink()
        wait_for(lambda: "now serving with 1 ECH key: new.pem" in caplog.text)
        retries = connect(demo, demo.ech_configs)
        assert retries == 1
        (demo.keys / "new.pem").unlink()
        wait_for(lambda: "the keys in use stay" in caplog.text)
        assert connect(demo, new) == 0


def connect(demo: Demo, configs: bytes, learned: list[bytes] | None = None) -> int:
    """Fetches something by way of this ECH configuration; returns how many retries it took, and what was handed over."""

    def seen(event: object) -> None:
        if learned is not None and isinstance(event, _native.EchLearned):
            learned.append(event.configs)

    config = msgspec.structs.replace(demo.client(mode="yamux", listen="127.0.0.1:0"), ech_config=configs)
    with Tunnel.from_config(config, on_event=seen) as tunnel:
        with tunnel.create_connection(demo.target_address, timeout=10) as connection:
            connection.sendall(b"GET /bytes/10 HTTP/1.0\r\n\r\n")
            assert connection.recv(100)
        return tunnel.snapshot().ech_retries


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _get(server: TunnelServer, path: str) -> tuple[int, str]:
    client = http.client.HTTPConnection(*server.status_addresses[0], timeout=10)
    with contextlib.closing(client):
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def server_with(folder: Path, **options: Any) -> TunnelServer:
    chain, key = _native.CertificateAuthority().issue(["tunnel.test"], **options)
    (folder / "cert.pem").write_bytes(chain)
    (folder / "cert.key").write_bytes(key)
    return TunnelServer(
        ServerConfig.build(
            listen="127.0.0.1:0", cert=folder / "cert.pem", key=folder / "cert.key", token="s3cret", status_listen=0
        )
    )


def test_the_servers_figures_are_on_a_listener_of_their_own(tmp_path: Path) -> None:
    server = server_with(tmp_path, not_after=90 * 86400)
    try:
        assert _get(server, "/healthz") == (200, "ok\n")
        assert _get(server, "/readyz") == (200, "ok\n")
        code, text = _get(server, "/metrics")
        assert code == 200
        found = {family.name: family for family in text_string_to_metric_families(text)}
        assert found["ech_workers_server_ready"].samples[0].value == 1
        assert found["ech_workers_server_sessions"].samples[0].value == 0
        ends = found["ech_workers_server_certificate_expires_at_seconds"].samples[0]
        assert abs(ends.value - time.time() - 90 * 86400) < 3600
        assert "s3cret" not in text
        assert _get(server, "/")[0] == 404
    finally:
        server.close()


def test_a_server_whose_certificate_clients_refuse_is_healthy_but_not_ready(tmp_path: Path) -> None:
    server = server_with(tmp_path, not_before=-86400, not_after=-60)
    try:
        assert _get(server, "/healthz")[0] == 200
        code, text = _get(server, "/readyz")
        assert code == 503
        assert "expired on" in text
    finally:
        server.close()


def _shown(server: TunnelServer, authority: _native.CertificateAuthority, name: str) -> bytes | None:
    """The certificate that a client is shown."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.check_hostname = False
    with (
        socket.create_connection(server.address, 10) as connection,
        context.wrap_socket(connection, server_hostname=name) as tls,
    ):
        return tls.getpeercert(binary_form=True)


def test_a_renewed_certificate_is_served_within_a_second_and_a_wrong_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = _native.CertificateAuthority()
    chain, key = tmp_path / "cert.pem", tmp_path / "cert.key"

    def issue() -> tuple[bytes, bytes]:
        return authority.issue(["tunnel.test"], not_after=90 * 86400)

    for path, pem in zip((chain, key), issue(), strict=True):
        path.write_bytes(pem)
    server = TunnelServer(ServerConfig.build(listen="127.0.0.1:0", cert=chain, key=key, token="s3cret"))
    try:
        first = _shown(server, authority, "tunnel.test")
        assert first is not None
        new_chain, new_key = issue()
        with caplog.at_level(logging.INFO, "ech_workers"):
            # As certbot and acme.sh do it: one file after the other.
            chain.write_bytes(new_chain)
            wait_until(lambda: "the certificates in use stay" in caplog.text, "it is said")
            assert _shown(server, authority, "tunnel.test") == first
            key.write_bytes(new_key)
            wait_until(lambda: _shown(server, authority, "tunnel.test") != first, "the new pair is served")
            second = _shown(server, authority, "tunnel.test")
            chain.write_text("nonsense")
            wait_until(lambda: "has no certificate in it" in caplog.text, "it is said")
            assert _shown(server, authority, "tunnel.test") == second
            chain.unlink()
            wait_until(lambda: "No such file" in caplog.text, "it is said")
            assert _shown(server, authority, "tunnel.test") == second
        said = [record.getMessage() for record in caplog.records]
        assert sum("has no certificate in it" in line for line in said) == 1
    finally:
        server.close()


def test_keys_are_put_back_when_something_else_of_the_same_configuration_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "other.pem", 7)
    with Demo() as demo:
        server = demo.server
        before = server.config
        foreign = msgspec.structs.replace(before.certificates[0], key=b"no key")
        with pytest.raises(ConfigError):
            server.apply(msgspec.structs.replace(before, ech_keys=tmp_path, certificates=(foreign,)))
        assert server.config == before
        assert server.status()["ech_keys"] == ["demo.pem"]
        server.apply(msgspec.structs.replace(before, ech_keys=tmp_path))
        assert server.status()["ech_keys"] == ["other.pem"]


def test_ech_goes_on_after_the_certificates_were_renewed(tmp_path: Path) -> None:
    """The keys are taken over: a client with their configuration is accepted as before."""
    with Demo() as demo:
        pairs = demo.server.config.certificates
        demo.server.apply(msgspec.structs.replace(demo.server.config, certificates=tuple(reversed(pairs))))
        demo.server.apply(msgspec.structs.replace(demo.server.config, certificates=pairs))
        tunnel = Tunnel.from_config(demo.client(mode="yamux", listen="127.0.0.1:0"))
        try:
            tunnel.start()
            tunnel.wait_ready(20)
            assert [session.ech for session in tunnel.status().sessions] == ["accepted"]
        finally:
            tunnel.close()
