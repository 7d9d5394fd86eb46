"""Fixtures that every room of the tests shares."""

import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from harness import go
from harness.authority import Authority
from harness.fleet import Fleet
from harness.processes import Processes, python_program
from harness.secrecy import WATCH
from harness.tunnel import Site

TESTS = Path(__file__).resolve().parent


def pytest_configure() -> None:
    # Whoever is started in the background by a shell, or by nohup, ignores these signals, and so would every program that it starts.
    handlers = (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    )
    for number, handler in handlers:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    WATCH.begin()


@pytest.fixture(autouse=True)
def nobody_is_told_the_name() -> Iterator[None]:
    """No proxy has named the server to whoever uses its port."""
    yield
    seen = WATCH.take()
    assert not seen, f"a proxy names the server: {seen}"


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Starts programs, ends them, and shows what they said when the test failed."""
    started = Processes()
    yield started
    started.stop()
    if getattr(request.node, "failed", False):
        print(started.report())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        item.failed = True  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def site(tmp_path: Path, processes: Processes, authority: Authority) -> Iterator[Site]:
    """A resolver, certificates and ECH keys; both ends are started by the test."""
    made = Site.make(tmp_path, processes, authority)
    yield made
    processes.stop()
    made.resolver.stop()
    shutil.rmtree(made.runtime)


@pytest.fixture
def fleet(site: Site) -> Iterator[Fleet]:
    """Three servers behind one tunnel."""
    made = Fleet(site, ["yamux", "yamux", "yamux"])
    yield made
    made.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the target's /files/ serves."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def targets(files: Path) -> Iterator[dict[str, int]]:
    """The servers behind the tunnel: name to port."""
    started = Processes()
    program = started.start(*python_program("harness.targets"), str(files), env={"PYTHONPATH": str(TESTS)})
    event = program.wait_event("listening")
    yield {name: port for name, port in event.items() if name != "event"}
    started.stop()


@pytest.fixture(scope="session")
def go_peers() -> dict[str, Path]:
    """The deployed protocol's server and client, and hashicorp/yamux: name to program."""
    return go.build()
