"""The look-up against real DoH servers of different make, in the tunnel's own TLS, by HTTP/2 and HTTP/1.1."""

from __future__ import annotations

import base64
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ech_workers import _native, doh
from ech_workers.config import ClientConfig
from ech_workers.ech import EchStore
from ech_workers.supervisor import Supervisor
from ech_workers.timing import Timing
from harness.doh_servers import NAME, DohServer, build_coredns, reload_named, start_coredns, start_named, zone
from harness.ech import ech_key
from harness.processes import Processes
from harness.resolver import Resolver as OwnResolver
from harness.tunnel import PUBLIC_NAME, SERVER_NAME
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ech_workers.overview import SupervisorStatus
    from harness.authority import Authority
    from harness.tunnel import Site

# The first test that needs CoreDNS waits for its build: a minute or two where Go has not built it before.
pytestmark = pytest.mark.timeout(1000)

Method = Literal["GET", "POST"]


def published(list_: bytes) -> str:
    return base64.b64encode(list_).decode()


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two ECHConfigLists."""
    folder = tmp_path_factory.mktemp("lists")
    return ech_key(folder, PUBLIC_NAME, 1).config_list, ech_key(folder, PUBLIC_NAME, 2).config_list


@pytest.fixture(scope="module")
def records(lists: tuple[bytes, bytes]) -> str:
    first, second = map(published, lists)
    return zone(
        f'secret HTTPS 1 . alpn="h2,http/1.1" ech="{first}" ipv4hint=127.0.0.2',
        "secret A 127.0.0.1",
        "secret AAAA ::1",
        f'_8450._https.secret HTTPS 1 secret.test. ech="{second}"',
        f'alias HTTPS 0 pool.test.\npool HTTPS 1 . ech="{first}"',
        "loop HTTPS 0 loop2.test.\nloop2 HTTPS 0 loop.test.",
        "\n".join(f"c{i} CNAME c{i + 1}" for i in range(12)) + f'\nc12 HTTPS 1 . ech="{first}"',
        f'short CNAME shorter\nshorter CNAME c12\nshorter2 HTTPS 1 . ech="{first}"',
        f'several HTTPS 3 c.test. ech="{second}"\nseveral HTTPS 1 a.test. alpn=h2',
        f'several HTTPS 2 b.test. ech="{first}"',
        f'demanding HTTPS 1 . mandatory=key667 key667=x ech="{second}"',
        f'demanding HTTPS 2 . mandatory=ech,alpn alpn=h2 ech="{first}"',
        "plain HTTPS 1 . alpn=h2",
        "blocked A 0.0.0.0",
        "bare TXT hello",
    )


@pytest.fixture(scope="module")
def shared_processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def named(
    tmp_path_factory: pytest.TempPathFactory, shared_processes: Processes, authority: Authority, records: str
) -> DohServer:
    zones = {"test": records, "broken.example": "this is no zone file\n"}
    folder = tmp_path_factory.mktemp("named")
    return start_named(folder, shared_processes, authority.issue(NAME), authority.path, zones)


@pytest.fixture(scope="module")
def coredns_program() -> Path:
    return build_coredns()


@pytest.fixture(scope="module")
def coredns(
    coredns_program: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shared_processes: Processes,
    authority: Authority,
    records: str,
) -> DohServer:
    folder = tmp_path_factory.mktemp("coredns-zones")
    return start_coredns(
        coredns_program, folder, shared_processes, authority.issue(NAME), authority.path, {"test": records}
    )


@pytest.fixture(params=["named", "coredns"])
def server(request: pytest.FixtureRequest) -> DohServer:
    """Each of the servers."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, DohServer)
    return found


@pytest.fixture(scope="module")
def engine(authority: Authority) -> Iterator[_native.Engine]:
    made = _native.Engine(_native.EngineConfiguration(ca_pem=[authority.path.read_bytes()], system_roots=False))
    yield made
    made.close()


def ask(
    engine: _native.Engine,
    server: DohServer,
    question: doh.Question,
    *,
    method: Method = "POST",
    alpn: Literal["auto", "http/1.1"] = "auto",
    timeout: float = 5.0,
) -> _native.Fetched | _native.FetchFailed:
    """One exchange."""
    path, body = doh.request("/dns-query", doh.query(question), method)
    number = engine.fetch(
        _native.FetchPlan(
            server_name=NAME,
            port=server.port,
            addresses=["127.0.0.1"],
            path=path,
            method=method,
            body=body,
            alpn=alpn,
            timeout=timeout,
        )
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        event = engine.next_event(1.0)
        if isinstance(event, _native.Fetched | _native.FetchFailed) and event.fetch == number:
            return event
    raise AssertionError("the exchange never ended")


def fetched(*arguments: Any, **named_arguments: Any) -> _native.Fetched:
    event = ask(*arguments, **named_arguments)
    assert isinstance(event, _native.Fetched), event.failure.message
    doh.read_response(event.status, event.headers, event.body)
    return event


def https_of(
    engine: _native.Engine, server: DohServer, name: str, *, port: int = 443, steps: int = 0
) -> doh.HttpsAnswer:
    question = doh.Question(name, "HTTPS")
    return doh.read_https_answer(fetched(engine, server, question).body, question, port, steps=steps)


# ---------------------------------------------------------------- one exchange


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_get_and_post_are_answered_over_http2(
    engine: _native.Engine, server: DohServer, method: Method, lists: tuple[bytes, bytes]
) -> None:
    question = doh.Question("secret.test", "HTTPS")
    event = fetched(engine, server, question, method=method)
    assert event.http_version == "h2"
    endpoint = doh.read_https_answer(event.body, question, 443).with_ech()
    assert endpoint is not None
    assert endpoint.ech == lists[0]
    assert endpoint.hints == ("127.0.0.2",)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_get_and_post_are_answered_over_http1(
    engine: _native.Engine, coredns: DohServer, method: Method, lists: tuple[bytes, bytes]
) -> None:
    question = doh.Question("secret.test", "HTTPS")
    event = fetched(engine, coredns, question, method=method, alpn="http/1.1")
    assert event.http_version == "http/1.1"
    endpoint = doh.read_https_answer(event.body, question, 443).with_ech()
    assert endpoint is not None
    assert endpoint.ech == lists[0]


def test_a_server_without_http1_is_a_failure_and_not_a_wait(engine: _native.Engine, named: DohServer) -> None:
    started = time.monotonic()
    event = ask(engine, named, doh.Question("secret.test", "HTTPS"), alpn="http/1.1")
    assert isinstance(event, _native.FetchFailed)
    assert time.monotonic() - started < 5.5


def test_addresses_of_both_families_are_found(engine: _native.Engine, server: DohServer) -> None:
    found: list[str] = []
    kinds: tuple[doh.Type, ...] = ("A", "AAAA")
    for kind in kinds:
        question = doh.Question("secret.test", kind)
        found += doh.read_address_answer(fetched(engine, server, question).body, question).addresses
    assert found == ["127.0.0.1", "::1"]


def test_the_record_of_another_port_is_its_own(
    engine: _native.Engine, server: DohServer, lists: tuple[bytes, bytes]
) -> None:
    (endpoint,) = https_of(engine, server, doh.https_name("secret.test", 8450), port=8450).endpoints
    assert (endpoint.target, endpoint.port, endpoint.ech) == ("secret.test", 8450, lists[1])


def test_priorities_and_mandatory_keys_decide(
    engine: _native.Engine, server: DohServer, lists: tuple[bytes, bytes]
) -> None:
    several = https_of(engine, server, "several.test")
    assert [endpoint.target for endpoint in several.endpoints] == ["a.test", "b.test", "c.test"]
    chosen = several.with_ech()
    assert chosen is not None
    assert (chosen.target, chosen.ech) == ("b.test", lists[0])
    demanding = https_of(engine, server, "demanding.test")
    assert [endpoint.priority for endpoint in demanding.endpoints] == [2]


def test_aliases_are_followed(engine: _native.Engine, server: DohServer, lists: tuple[bytes, bytes]) -> None:
    answer = https_of(engine, server, "alias.test")
    if answer.alias is not None:
        answer = https_of(engine, server, answer.alias, steps=answer.steps)
    assert answer.name == "pool.test"
    (endpoint,) = answer.endpoints
    assert (endpoint.target, endpoint.ech) == ("pool.test", lists[0])


def test_short_chains_of_cnames_are_followed_and_long_ones_are_not(engine: _native.Engine, server: DohServer) -> None:
    assert https_of(engine, server, "short.test").with_ech() is not None
    with pytest.raises(doh.AnswerError, match="aliases"):
        https_of(engine, server, "c3.test")  # nine of them; BIND gives up on its own at eleven


def test_names_and_records_that_are_not_there_are_told_apart(engine: _native.Engine, server: DohServer) -> None:
    assert https_of(engine, server, "missing.test").why == "missing.test does not exist"
    bare = https_of(engine, server, "bare.test")
    assert bare.why == "bare.test has no HTTPS record"
    assert bare.ttl == 30
    plain = https_of(engine, server, "plain.test")
    assert (len(plain.endpoints), plain.with_ech()) == (1, None)


def test_a_blocking_answer_is_called_so(engine: _native.Engine, server: DohServer) -> None:
    question = doh.Question("blocked.test", "A")
    answer = doh.read_address_answer(fetched(engine, server, question).body, question)
    assert "blocks blocked.test" in (answer.why or "")


def test_servfail_is_an_error(engine: _native.Engine, named: DohServer, coredns: DohServer) -> None:
    for server, name in ((named, "a.broken.example"), (coredns, "a.erratic.test")):
        with pytest.raises(doh.AnswerError) as caught:
            https_of(engine, server, name)
        assert caught.value.code == "resolver-servfail"


def test_refused_is_an_error(engine: _native.Engine, server: DohServer) -> None:
    with pytest.raises(doh.AnswerError) as caught:
        https_of(engine, server, "elsewhere.invalid")
    assert caught.value.code == "resolver-refused"


def test_a_truncated_answer_is_an_error(engine: _native.Engine, coredns: DohServer) -> None:
    question = doh.Question("a.erratic.test", "A")
    body = fetched(engine, coredns, question).body
    with pytest.raises(doh.AnswerError, match="truncated"):
        doh.read_address_answer(body, question)


def test_a_slow_server_is_given_up_in_time(engine: _native.Engine, coredns: DohServer) -> None:
    started = time.monotonic()
    event = ask(engine, coredns, doh.Question("a.slow.test", "HTTPS"), timeout=1.0)
    assert isinstance(event, _native.FetchFailed)
    # The server takes 8 s.
    assert time.monotonic() - started < 7


def test_an_unknown_authority_is_named(named: DohServer) -> None:
    stranger = _native.Engine(
        _native.EngineConfiguration(system_roots=False, ca_pem=[_native.CertificateAuthority().pem])
    )
    try:
        event = ask(stranger, named, doh.Question("secret.test", "HTTPS"))
    finally:
        stranger.close()
    assert isinstance(event, _native.FetchFailed)
    assert event.failure.code == "certificate-unknown-issuer"


def test_a_certificate_for_another_name_is_named(
    engine: _native.Engine, tmp_path: Path, processes: Processes, authority: Authority, records: str
) -> None:
    own = OwnResolver(authority.issue("other.ech-workers.test"), NAME)
    try:
        there = DohServer(processes.start("sleep", "60"), own.port, tmp_path, authority.path)
        event = ask(engine, there, doh.Question("secret.test", "HTTPS"))
    finally:
        own.stop()
    assert isinstance(event, _native.FetchFailed)
    assert event.failure.code == "certificate-name"


# ---------------------------------------------------------------- the supervisor among them


@contextmanager
def supervised(
    authority: Authority,
    *urls: str,
    server: str = "secret.test:8450",
    store: EchStore | None = None,
    timing: Timing | None = None,
) -> Iterator[Callable[[], SupervisorStatus]]:
    """A supervisor whose server nobody plays: what it looks up is of interest here."""
    config = ClientConfig.build(
        server=server,
        token="t",
        doh_server=urls,
        doh_ip=["127.0.0.1"] * len(urls),
        ca_file=authority.path,
        server_ip="127.0.0.1",
        listen=None,
        cache_dir="",
    )
    made = _native.Engine(_native.EngineConfiguration(ca_pem=[authority.path.read_bytes()], system_roots=False))
    supervisor = Supervisor(config, made, store or EchStore(None), timing=timing)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    try:
        yield supervisor.status
    finally:
        supervisor.stop()
        thread.join(10)
        made.close()


def has_configuration(status: Callable[[], SupervisorStatus]) -> Callable[[], bool]:
    return lambda: status().ech is not None


@pytest.mark.alone
def test_a_silent_resolver_costs_no_more_than_the_head_start(
    authority: Authority, named: DohServer, coredns: DohServer
) -> None:
    named.pause()
    try:
        started = time.monotonic()
        with supervised(authority, named.url, coredns.url) as status:
            wait_until(has_configuration(status), "an answer of the other resolver", 4)
            assert time.monotonic() - started < 3
            assert [resolver.state for resolver in status().resolvers] == ["untried", "ok"]
            wait_until(lambda: status().resolvers[0].state == "failing", "the silent one is noticed", 10)
    finally:
        named.resume()


@pytest.mark.parametrize("behaviour", ["garbage", "servfail", "http-500"])
def test_a_resolver_that_answers_wrongly_does_not_decide(
    authority: Authority, named: DohServer, behaviour: Literal["garbage", "servfail", "http-500"]
) -> None:
    own = OwnResolver(authority.issue("own.ech-workers.test"), "own.ech-workers.test")
    own.behaviour = behaviour
    try:
        with supervised(authority, own.url, named.url) as status:
            wait_until(has_configuration(status), "an answer of the other resolver", 4)
            assert [resolver.state for resolver in status().resolvers] == ["failing", "ok"]
    finally:
        own.stop()


def test_a_resolver_that_denies_the_record_does_not_decide(
    authority: Authority, named: DohServer, coredns: DohServer
) -> None:
    own = OwnResolver(authority.issue("own.ech-workers.test"), "own.ech-workers.test")
    try:
        with supervised(authority, own.url, coredns.url, named.url) as status:
            wait_until(has_configuration(status), "an answer of the other resolver", 4)
            assert own.questions
    finally:
        own.stop()


def test_a_change_is_seen_when_the_ttl_is_over(
    authority: Authority, tmp_path: Path, processes: Processes, lists: tuple[bytes, bytes]
) -> None:
    def contents(configs: bytes, serial: int) -> str:
        return zone(f'_8450._https.secret 2 HTTPS 1 secret.test. ech="{published(configs)}"', serial=serial)

    store = EchStore(None)
    server = start_named(
        tmp_path / "named", processes, authority.issue(NAME), authority.path, {"test": contents(lists[0], 1)}
    )

    def known() -> bytes | None:
        found = store.configuration("secret.test:8450")
        return found.configs if found else None

    with supervised(authority, server.url, store=store, timing=Timing(refresh_floor=0.5)) as status:
        wait_until(lambda: known() == lists[0], "the first configuration")
        reload_named(server, "test", contents(lists[1], 2))
        wait_until(lambda: known() == lists[1], "the second configuration", 6)
        server.process.kill()
        wait_until(
            lambda: (ech := status().ech) is not None and ech.problem is not None and (ech.expires_in or 0) < 0,
            "the configuration is stale and cannot be refreshed",
        )
        assert known() == lists[1]
        assert status().cause is None or status().cause.layer != "resolver"  # type: ignore[union-attr]


def test_a_warm_cache_is_enough_when_every_resolver_is_down(site: Site) -> None:
    program = site.server(publish=False)
    records = zone(
        f'_{program.port}._https.hidden 1 HTTPS 1 {SERVER_NAME}. ech="{site.key.base64}"', "hidden 1 A 127.0.0.1"
    )
    domain = SERVER_NAME.partition(".")[2]
    named = start_named(
        site.folder / "named", site.processes, site.authority.issue(NAME), site.authority.path, {domain: records}
    )
    options = ("--doh-server", named.url, "--doh-ip", "127.0.0.1")
    first = site.proxy(program.port, *options, resolver=False)
    first.process.stop()
    named.process.kill()
    time.sleep(1.1)  # the TTL
    second = site.proxy(program.port, *options, resolver=False)
    assert second.process.running


def test_check_says_of_each_resolver_what_it_answers(site: Site, coredns: DohServer) -> None:
    import json

    from harness.processes import run
    from harness.tunnel import COMMAND, PATH, TOKEN

    program = site.server()
    site.resolver.remove(f"_{program.port}._https.{SERVER_NAME}", "HTTPS")
    done = run(
        COMMAND,
        "check",
        "--json",
        "--server",
        f"{SERVER_NAME}:{program.port}{PATH}",
        "--token",
        TOKEN,
        "--doh-server",
        site.resolver.url,
        "--doh-server",
        coredns.url,
        "--doh-ip",
        "127.0.0.1",
        "--doh-ip",
        "127.0.0.1",
        "--ca-file",
        site.authority.path,
        env=site.environment,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 6, done.stdout + done.stderr
    assert [row["layer"] for row in rows] == ["resolver", "resolver", "ech"]
    assert "no HTTPS record" in rows[0]["what"]
    assert "no HTTPS record" in rows[1]["what"]
    assert rows[2]["code"] == "ech-no-config"
    assert "--ech-domain" in rows[2]["advice"]
