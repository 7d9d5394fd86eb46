"""Fixtures of the Worker's tests: the generated project in both versions of the runtime."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.json_resolver import JsonResolver
from harness.processes import Processes
from harness.tunnel import Site
from harness.worker import NEW_DATE, OLD_DATE, Bundle, Deployment, Runtime, bundle
from harness.worker_tools import WorkerTools, worker_tools

# The runtime and the compatibility date: an old runtime knows no newer date, a new one is asked to behave as of old too.
VERSIONS = {"new": ("new", NEW_DATE), "new-as-of-old": ("new", OLD_DATE), "old": ("old", OLD_DATE)}


@pytest.fixture(scope="session")
def tools() -> WorkerTools:
    return worker_tools()


@pytest.fixture(scope="session")
def worker_bundle(tools: WorkerTools, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tools, tmp_path_factory.mktemp("worker"), seed=1)


@pytest.fixture
def lookups() -> Iterator[JsonResolver]:
    """The resolver that the Worker asks why it cannot reach a target."""
    resolver = JsonResolver()
    resolver.addresses["localhost"] = ["127.0.0.1"]
    yield resolver
    resolver.stop()


@pytest.fixture(params=["new", "old"])
def version(request: pytest.FixtureRequest) -> str:
    """Which runtime; a test that needs fewer or more of them says so with `parametrize`."""
    named: str = request.param
    return named


@pytest.fixture
def deployment(
    site: Site,
    processes: Processes,
    tools: WorkerTools,
    worker_bundle: Bundle,
    go_peers: dict[str, Path],
    lookups: JsonResolver,
    version: str,
    tmp_path: Path,
) -> Deployment:
    program, date = VERSIONS[version]
    runtime = Runtime(tmp_path / "runtime", processes, tools.workerd(program), date, worker_bundle.file, site.authority)
    return Deployment(site, runtime, worker_bundle, go_peers["ech_terminator"], lookups.url)
