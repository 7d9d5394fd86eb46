"""The store of ECH configurations: what must survive restarts, other processes and damage."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ech_workers import _native
from ech_workers.ech import (
    ENTRY_LIMIT,
    FILE_NAME,
    H2_TTL,
    Addresses,
    Configuration,
    EchStore,
    public_name,
    without_first,
)

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "secret.test:443"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def found(configs: bytes = b"published", *, at: float = 1_700_000_000.0, ttl: float = 300) -> Configuration:
    return Configuration(
        configs=configs,
        source="dns",
        origin="secret.test",
        fetched_at=at,
        ttl=ttl,
        target="pool.test",
        port=8443,
        hints=("192.0.2.1", "2001:db8::1"),
    )


def test_what_is_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    store = EchStore(tmp_path, clock=clock)
    assert store.store(SERVER, found()) == found()
    store.store_addresses("pool.test", Addresses(("192.0.2.9",), clock.now, 60))
    store.remember_h2(SERVER)

    again = EchStore(tmp_path, clock=clock)
    assert again.configuration(SERVER) == found()
    assert again.addresses("pool.test") == Addresses(("192.0.2.9",), clock.now, 60)
    assert again.is_h2_known(SERVER)
    assert again.configuration("other.test:443") is None


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = EchStore(None)
    store.store(SERVER, found())
    store.learn(SERVER, b"retry", used=found())
    store.remember_h2(SERVER)
    assert store.configuration(SERVER) is not None
    assert list(tmp_path.iterdir()) == []


def test_an_entry_past_its_ttl_is_stale_but_still_there() -> None:
    store = EchStore(None)
    entry = store.store(SERVER, found(at=1000.0, ttl=60))
    assert not entry.is_stale(1059.9)
    assert entry.is_stale(1060.0)
    assert store.configuration(SERVER) == entry


def test_an_entry_from_the_future_is_stale_because_the_clock_was_set_back() -> None:
    assert found(at=5000.0, ttl=60).is_stale(1000.0)
    assert Addresses(("192.0.2.1",), 5000.0, 60).is_stale(1000.0)


def test_retry_configurations_replace_those_that_were_rejected_and_keep_the_rest() -> None:
    store = EchStore(None, clock=Clock())
    store.store(SERVER, found())
    learned = store.learn(SERVER, b"retry", used=found())
    assert (learned.configs, learned.source) == (b"retry", "retry")
    assert (learned.target, learned.port, learned.hints) == ("pool.test", 8443, ("192.0.2.1", "2001:db8::1"))


def test_a_look_up_that_still_finds_the_rejected_configurations_changes_nothing_but_the_age() -> None:
    clock = Clock()
    store = EchStore(None, clock=clock)
    store.store(SERVER, found(b"old"))
    first = store.learn(SERVER, b"retry 1", used=found(b"old"))
    store.learn(SERVER, b"retry 2", used=first)
    used = store.store(SERVER, found(b"old", at=clock.now + 100, ttl=42))
    assert (used.configs, used.source, used.fetched_at, used.ttl) == (b"retry 2", "retry", clock.now + 100, 42)
    newer = store.store(SERVER, found(b"new", at=clock.now + 200))
    assert (newer.configs, newer.source) == (b"new", "dns")


def test_a_forgotten_configuration_stays_forgotten_in_other_processes(tmp_path: Path) -> None:
    first, second = EchStore(tmp_path), EchStore(tmp_path)
    first.store(SERVER, found())
    assert second.configuration(SERVER) is not None
    first.forget(SERVER)
    second.remember_h2(SERVER)
    assert second.configuration(SERVER) is None
    assert EchStore(tmp_path).configuration(SERVER) is None


def test_h2_is_forgotten_after_a_month() -> None:
    clock = Clock()
    store = EchStore(None, clock=clock)
    store.remember_h2(SERVER)
    clock.now += H2_TTL - 1
    assert store.is_h2_known(SERVER)
    clock.now += 2
    assert not store.is_h2_known(SERVER)


def test_the_file_is_for_its_owner_alone_even_with_an_open_umask(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "cache"
    before = os.umask(0)
    try:
        EchStore(directory).store(SERVER, found())
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_left_readable_by_others_is_closed(tmp_path: Path) -> None:
    EchStore(tmp_path).store(SERVER, found())
    (tmp_path / FILE_NAME).chmod(0o644)
    assert EchStore(tmp_path).configuration(SERVER) is not None
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_two_stores_see_each_others_changes(tmp_path: Path) -> None:
    first, second = EchStore(tmp_path), EchStore(tmp_path)
    first.store("a.test:443", found(b"a"))
    second.store("b.test:443", found(b"b"))
    first.remember_h2("c.test:443")
    for store in (first, second):
        for name, configs in (("a.test:443", b"a"), ("b.test:443", b"b")):
            entry = store.configuration(name)
            assert entry is not None
            assert entry.configs == configs
        assert store.is_h2_known("c.test:443")


def test_several_processes_lose_nothing_and_never_see_half_a_file(tmp_path: Path) -> None:
    program = """
import sys, time, pathlib
from ech_workers.ech import Configuration, EchStore
store = EchStore(pathlib.Path(sys.argv[1]))
for i in range(25):
    store.store(f"{sys.argv[2]}-{i}.test:443", Configuration(
        configs=bytes(2000), source="dns", origin="x", fetched_at=time.time(), ttl=60))
"""
    writers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", program, str(tmp_path), name], env=_environment())
        for name in "abcd"
    ]
    path = tmp_path / FILE_NAME
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            json.loads(path.read_bytes())
            reads += 1
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    assert reads > 0
    kept = EchStore(tmp_path)
    assert all(kept.configuration(f"{name}-{i}.test:443") for name in "abcd" for i in range(25))
    assert sorted(file.name for file in tmp_path.iterdir()) == [FILE_NAME, "ech.lock"]


def test_several_threads_lose_nothing(tmp_path: Path) -> None:
    store = EchStore(tmp_path)
    threads = [
        threading.Thread(target=lambda n=n: [store.store(f"{n}-{i}.test:443", found()) for i in range(10)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(EchStore(tmp_path).configuration(f"{n}-{i}.test:443") for n in range(4) for i in range(10))


def test_a_process_that_was_killed_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EchStore(tmp_path)
    store.store(SERVER, found())
    before = (tmp_path / FILE_NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", full)
        store.store("b.test:443", found(b"b"))
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert not list(tmp_path.glob("*.new"))
    kept = store.configuration("b.test:443")
    assert kept is not None
    store.remember_h2(SERVER)


def test_a_lock_that_is_never_let_go_does_not_stop_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("ech_workers.ech._LOCK_TIMEOUT", 0.1)
    with (tmp_path / "ech.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store = EchStore(tmp_path)
        store.store(SERVER, found())
        assert EchStore(tmp_path).configuration(SERVER) == found()


NEWER = {"version": 2, "configurations": {"secret.test:443": "in a form of its own"}, "more": [1, 2]}


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps(NEWER))
    store = EchStore(tmp_path)
    with caplog.at_level(logging.INFO, "ech_workers"):
        for _ in range(3):
            assert store.store(SERVER, found()) == found()
            assert store.configuration(SERVER) == found()
            store.remember_h2(SERVER)
            assert store.is_h2_known(SERVER)
    assert json.loads(path.read_text()) == NEWER
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "was written by a newer version of this program and is left alone" in record.getMessage()
    # The other program is gone, or another one has put its own file there.
    path.unlink()
    store.store(SERVER, found())
    assert EchStore(tmp_path).configuration(SERVER) == found()


def test_a_file_without_a_version_is_read(tmp_path: Path) -> None:
    EchStore(tmp_path).store(SERVER, found())
    path = tmp_path / FILE_NAME
    written = json.loads(path.read_text())
    assert written.pop("version") == 1
    path.write_text(json.dumps(written))
    assert EchStore(tmp_path).configuration(SERVER) == found()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\0" * 4096,
        b"[" * 200_000,
        b'{"configurations": 7}',
        b'{"configurations": {"secret.test:443": {"configs": "!!!", "source": "dns"}}}',
        b'{"addresses": {"a.test": {"addresses": ["not an address"], "fetched_at": 1, "ttl": 1}}}',
        b'{"addresses": {"a.test": {"addresses": [], "fetched_at": 1, "ttl": -1}}}',
    ],
)
def test_a_corrupted_file_is_reported_once_and_made_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(damage)
    store = EchStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert store.configuration(SERVER) is None
        store.store(SERVER, found())
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "corrupted" in record.getMessage()
    assert EchStore(tmp_path).configuration(SERVER) == found()


def test_damage_while_running_keeps_what_memory_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EchStore(tmp_path)
    store.store(SERVER, found())
    (tmp_path / FILE_NAME).write_bytes(b"garbage")
    assert store.configuration(SERVER) == found()
    store.remember_h2(SERVER)
    assert EchStore(tmp_path).configuration(SERVER) == found()
    assert len(caplog.records) == 1


def test_a_deleted_file_is_written_again(tmp_path: Path) -> None:
    store = EchStore(tmp_path)
    store.store(SERVER, found())
    (tmp_path / FILE_NAME).unlink()
    assert store.configuration(SERVER) == found()
    store.remember_h2(SERVER)
    assert EchStore(tmp_path).configuration(SERVER) == found()


def test_a_directory_that_cannot_be_made_is_reported_once_and_memory_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = EchStore(tmp_path / "file" / "cache")
    for _ in range(3):
        store.store(SERVER, found())
        store.learn(SERVER, b"retry", used=found())
    kept = store.configuration(SERVER)
    assert kept is not None
    assert kept.configs == b"retry"
    assert sum("cannot keep" in record.getMessage() for record in caplog.records) == 1


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    store = EchStore(None)
    for i in range(ENTRY_LIMIT + 50):
        store.store(f"{i}.test:443", found(at=float(i)))
        store.store_addresses(f"{i}.test", Addresses(("192.0.2.1",), float(i), 1))
    assert store.configuration("0.test:443") is None
    assert store.configuration(f"{ENTRY_LIMIT + 49}.test:443") is not None
    assert store.addresses("49.test") is None
    assert store.addresses("50.test") is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_in_the_file_are_survived(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(data)
    store = EchStore(tmp_path)
    store.configuration(SERVER)
    store.store(SERVER, found())
    assert EchStore(tmp_path).configuration(SERVER) == found()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_list_is_shortened_by_its_first_usable_entry_until_none_is_left() -> None:
    lists = [_native.generate_ech_key(number, f"public-{number}.test")[1] for number in range(3)]
    entries = [one[2:] for one in lists]
    unknown = b"\xff\xff\x00\x02??"
    whole = b"".join([unknown, *entries])
    configs = len(whole).to_bytes(2, "big") + whole
    names = []
    left: bytes | None = configs
    while left is not None:
        names.append(public_name(left))
        left = without_first(left)
    assert names == ["public-0.test", "public-1.test", "public-2.test"]
    assert without_first(lists[0]) is None
    assert without_first(b"") is None
