"""The directory of ECH keys, as an operator changes it."""

from __future__ import annotations

import base64
import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from ech_workers import Tunnel, _native
from ech_workers.demo import Demo
from ech_workers.server import KeyDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


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
    assert sorted(line.split(" ")[0] for line in said) == ["large.pem", "noise.pem", "public.pem"]
    assert any("public.pem is left out: it has no private key" in line for line in said)


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


def connect(demo: Demo, configs: bytes) -> int:
    """Fetches something by way of this ECH configuration; returns how many retries it took."""
    config = msgspec.structs.replace(demo.client(mode="yamux", listen="127.0.0.1:0"), ech_config=configs)
    with Tunnel.from_config(config) as tunnel:
        with tunnel.create_connection(demo.target_address, timeout=10) as connection:
            connection.sendall(b"GET /bytes/10 HTTP/1.0\r\n\r\n")
            assert connection.recv(100)
        return tunnel.snapshot().ech_retries


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
