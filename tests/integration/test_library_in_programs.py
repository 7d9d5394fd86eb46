"""The library in programs of every kind: forked ones, those with gevent, those that are interrupted or forget to close."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ech_workers.demo import SAMPLE, Demo
from harness.processes import Processes, run
from harness.silent import Silent

PRELUDE = """
import gc, json, os, signal, socket, sys, threading, time, warnings
given = json.loads(sys.argv[1])
options, target, silent = given["options"], tuple(given["target"]), tuple(given["silent"])

def fetch(tunnel, size=1000):
    with tunnel.create_connection(target, timeout=20) as stream:
        stream.sendall(b"GET /bytes/%d HTTP/1.0\\r\\n\\r\\n" % size)
        received = b""
        while data := stream.recv(65536):
            received += data
    return len(received.partition(b"\\r\\n\\r\\n")[2]) == size
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with Demo() as running:
        yield running


@pytest.fixture(scope="module")
def given(demo: Demo) -> Iterator[dict[str, Any]]:
    with Silent() as silent:
        yield {
            "options": {
                "server": f"hidden.test:{demo.server.address[1]}/ws",
                "token": demo.token,
                "doh_server": demo.resolver_url,
                "doh_ip": "127.0.0.1",
                "ca_file": str(demo.ca_file),
                "cache_dir": "",
            },
            "target": demo.target_address,
            "silent": silent.address,
        }


def program(tmp_path: Path, body: str) -> Path:
    file = tmp_path / "program.py"
    file.write_text(PRELUDE + textwrap.dedent(body))
    return file


def told(tmp_path: Path, given: dict[str, Any], body: str, *options: str) -> list[str]:
    """What a program says, line by line; it must end well."""
    done = run(sys.executable, *options, program(tmp_path, body), json.dumps(given), timeout=60)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path, given: dict[str, Any]) -> None:
    body = """
    from ech_workers import EngineClosed, Tunnel

    with Tunnel(**options) as tunnel:
        held = tunnel.create_connection(target, timeout=20)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    refused = 0
                    for call in [
                        lambda: tunnel.create_connection(target, timeout=3),
                        tunnel.status, tunnel.snapshot, tunnel.start, tunnel.wait_ready, tunnel.close,
                        lambda: tunnel.listen("127.0.0.1"),
                        lambda: tunnel._running.engine.next_event(1),
                        lambda: tunnel._running.engine.wake(),
                        lambda: tunnel._running.engine.close(),
                        lambda: tunnel._running.engine.open("a.test", 80),
                    ] * 3:
                        try:
                            call()
                        except EngineClosed as error:
                            refused += "another process" in str(error)
                    repr(tunnel)
                    tunnel.__exit__(None, None, None)
                    del tunnel
                    gc.collect()
                    with Tunnel(**options) as own:
                        if refused == 33 and fetch(own):
                            status = 0
                finally:
                    os._exit(status)
            _, code = os.waitpid(child, 0)
            print("child", os.waitstatus_to_exitcode(code), "parent", fetch(tunnel))
        held.close()
    """
    # From Python 3.12 on the interpreter warns of any fork of a process with threads.
    assert told(tmp_path, given, body, "-W", "ignore::DeprecationWarning") == ["child 0 parent True"] * 5


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(tmp_path: Path, given: dict[str, Any], method: str) -> None:
    body = f"""
    import multiprocessing
    from ech_workers import EngineClosed, Tunnel

    inherited = None

    def work(number):
        try:
            if inherited is not None:
                inherited.create_connection(target, timeout=3)
        except EngineClosed:
            pass
        with Tunnel(**options) as tunnel:
            return fetch(tunnel, 100 + number)

    if __name__ == "__main__":
        context = multiprocessing.get_context({method!r})
        with Tunnel(**options) as inherited:
            with context.Pool(4) as pool:
                # Not map(), which waits for ever for a worker that crashed.
                print(pool.map_async(work, range(8)).get(30))
            print(fetch(inherited))
    """
    assert told(tmp_path, given, body) == [str([True] * 8), "True"]


def test_a_server_that_loads_the_program_before_it_forks(
    tmp_path: Path, given: dict[str, Any], processes: Processes
) -> None:
    """gunicorn --preload: the tunnel of the parent is refused in the workers, and they make their own."""
    (tmp_path / "site.py").touch()
    (tmp_path / "application.py").write_text(
        textwrap.dedent("""
        import json, os
        from ech_workers import EngineClosed, Tunnel

        given = json.loads(os.environ["GIVEN"])
        inherited = Tunnel(**given["options"])
        inherited.__enter__()
        own = {}

        def application(environ, start_response):
            try:
                inherited.create_connection(given["target"], timeout=3)
                word = "leaked"
            except EngineClosed:
                word = "refused"
            if os.getpid() not in own:
                own[os.getpid()] = Tunnel(**given["options"]).__enter__()
            with own[os.getpid()].create_connection(given["target"], timeout=20) as stream:
                stream.sendall(b"GET /bytes/5 HTTP/1.0\\r\\n\\r\\n")
                answer = stream.recv(65536)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [f"{word} {answer[:12].decode()}".encode()]
        """)
    )
    (tmp_path / "site.py").unlink()
    server = processes.start(
        *(sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0"),
        *("--chdir", tmp_path, "--no-control-socket", "application:application"),
        env={"GIVEN": json.dumps(given), "PYTHONPATH": str(tmp_path)},
    )
    port = int(server.wait_line(r"Listening at: http://127\.0\.0\.1:(\d+)").group(1))
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.endswith((b"refused HTTP/1.0 200", b"refused HTTP/1.1 200")), answer
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output


def test_gevent(tmp_path: Path, given: dict[str, Any]) -> None:
    body = """
    from gevent import monkey
    monkey.patch_all()
    import gevent
    from ech_workers import TargetTimeout, Tunnel

    # Threads of the system and greenlets meet at the package's locks; once is not enough to see one that is not woken.
    for _ in range(10):
        with Tunnel(**options, connect="lazy") as tunnel:
            tunnel.wait_ready(10)

    ticks = 0

    def tick():
        global ticks
        while True:
            ticks += 1
            gevent.sleep(0.01)

    gevent.spawn(tick)
    with Tunnel(**options) as tunnel:
        tunnel.wait_ready(10)
        jobs = [gevent.spawn(fetch, tunnel, 1000 + number) for number in range(50)]
        gevent.joinall(jobs, timeout=30, raise_error=True)
        print(all(job.value for job in jobs))
        before = ticks
        try:
            tunnel.create_connection(silent, timeout=0.5)
        except TargetTimeout:
            print("timeout", ticks - before > 5)
        with gevent.Timeout(0.3, False):
            tunnel.create_connection(silent, timeout=60)
        while tunnel.snapshot().connections:
            gevent.sleep(0.01)
        with tunnel.create_connection(target, timeout=20) as held:
            before = ticks
            tunnel.close(0.3)
            print("closed", ticks - before > 5)
    """
    assert told(tmp_path, given, body) == ["True", "timeout True", "closed True"]


INTERRUPTED = {
    "create_connection": "tunnel.create_connection(silent, timeout=60)",
    "close": "held = tunnel.create_connection(target, timeout=20); ready(); tunnel.close(60)",
    "wait_ready": "Tunnel(**{**options, 'server': 'hidden.test:9/ws', 'server_ip': '192.0.2.1'}, connect='lazy').__enter__().wait_ready(60, patient=True)",
    "next_event": "tunnel._running.supervisor.stop(); tunnel._running._thread.join(); time.sleep(0.2)\n        while True: tunnel._running.engine.next_event(60)",
    "recv": "tunnel.create_connection(target, timeout=None).recv(1)",
}


@pytest.mark.parametrize("call", INTERRUPTED)
def test_an_interrupt_is_noticed_at_once(
    tmp_path: Path, given: dict[str, Any], call: str, processes: Processes
) -> None:
    body = f"""
    from ech_workers import Tunnel

    def ready():
        print("ready", flush=True)

    tunnel = Tunnel(**options).__enter__()
    try:
        ready()
        {INTERRUPTED[call]}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    started = processes.start(sys.executable, "-W", "ignore", program(tmp_path, body), json.dumps(given))
    started.wait_line("ready")
    time.sleep(0.5)
    before = time.monotonic()
    started.signal(signal.SIGINT)
    started.wait_line("interrupted")
    # Without close(): the interpreter ends at once all the same. The call would have taken a minute.
    assert started.wait() == 0, started.output
    assert time.monotonic() - before < 20


def test_an_interrupted_asyncio_program_ends_at_once(
    tmp_path: Path, given: dict[str, Any], processes: Processes
) -> None:
    body = """
    import asyncio
    from ech_workers import aio

    async def main():
        tunnel = await aio.Tunnel(**options).__aenter__()
        tasks = [asyncio.create_task(tunnel.open_connection(*silent, timeout=60)) for _ in range(100)]
        print("ready", flush=True)
        await asyncio.gather(*tasks)

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    started = processes.start(sys.executable, "-W", "ignore", program(tmp_path, body), json.dumps(given))
    started.wait_line("ready")
    started.signal(signal.SIGINT)
    assert started.wait() == 0, started.output
    assert "interrupted" in started.output


def test_a_check_of_a_silent_server_can_be_interrupted(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = processes.start(
            *(Path(sys.executable).with_name("ech-workers"), "check", "--server", f"a.test:{server.getsockname()[1]}/"),
            *("--no-ech", "--server-ip", "127.0.0.1", "--token", "x", "--cache-dir", ""),
        )
        client, _ = server.accept()
        with client:
            started.signal(signal.SIGINT)
            assert started.wait() != 0


def test_a_forgotten_tunnel_warns_and_ends(tmp_path: Path, given: dict[str, Any]) -> None:
    body = """
    from ech_workers import Tunnel

    def threads():
        return len(os.listdir("/proc/self/task"))

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    with Tunnel(**options) as first:
        fetch(first)
    del first
    gc.collect()
    before = threads(), descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            tunnel = Tunnel(**options, status_listen="0")
            tunnel.__enter__()
            fetch(tunnel)
            del tunnel
            gc.collect()
    print([w.category.__name__ for w in caught], "unclosed <Tunnel" in str(caught[0].message))
    for _ in range(500):
        if (threads(), descriptors()) == before:
            break
        time.sleep(0.02)
    print(threads() - before[0], descriptors() - before[1])
    """
    assert told(tmp_path, given, body) == ["['ResourceWarning', 'ResourceWarning', 'ResourceWarning'] True", "0 0"]


def test_close_leaves_no_descriptor_and_no_thread(tmp_path: Path, given: dict[str, Any]) -> None:
    body = """
    import asyncio
    from ech_workers import Tunnel, aio

    def counts():
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    def more():
        # The system takes a thread that was joined off its list a moment later.
        for _ in range(100):
            if counts() == before:
                break
            time.sleep(0.01)
        return counts()[0] - before[0], counts()[1] - before[1]

    # What the interpreter opens once and for all.
    with Tunnel(**options) as tunnel:
        fetch(tunnel)
    time.sleep(0.1)
    before = counts()
    kept = []
    for _ in range(3):
        tunnel = Tunnel(**options)
        with tunnel:
            fetch(tunnel)
            tunnel.listen("127.0.0.1")
        kept.append(tunnel)
    print(*more())

    async def use():
        tunnel = aio.Tunnel(**options)
        async with tunnel:
            reader, writer = await tunnel.open_connection(*target)
            writer.close()
            await writer.wait_closed()
        kept.append(tunnel)

    asyncio.run(use())
    print(*more())
    """
    assert told(tmp_path, given, body) == ["0 0", "0 0"]


@pytest.mark.parametrize(
    "body",
    [
        "tunnel = Tunnel(**options).__enter__()",
        "tunnel = Tunnel(**options).__enter__(); stream = tunnel.create_connection(target)",
        "tunnel = Tunnel(**options).__enter__(); threading.Thread(target=lambda: tunnel.create_connection(silent, timeout=60), daemon=True).start(); time.sleep(0.2)",
        "Tunnel(**options).__enter__()",
    ],
)
def test_a_program_that_never_closes_ends_at_once(tmp_path: Path, given: dict[str, Any], body: str) -> None:
    text = f"""
    from ech_workers import Tunnel
    {body}
    print(time.monotonic())
    """
    lines = told(tmp_path, given, text, "-W", "ignore")
    # The clock is the system's: what is left is the interpreter's own end.
    assert time.monotonic() - float(lines[0]) < 20


# Since Python 3.14 they are public; what there was before has another name in each version.
if sys.version_info >= (3, 14):
    SUBINTERPRETERS = ("from concurrent import interpreters", "interpreters.create().exec(code)", "ExecutionFailed")
else:
    SUBINTERPRETERS = (
        "import _xxsubinterpreters as interpreters",
        "interpreters.run_string(interpreters.create(), code)",
        "RunFailedError",
    )


@pytest.mark.skipif(sys.version_info[:2] == (3, 13), reason="Python 3.13 has no module for subinterpreters to rely on")
def test_subinterpreters_are_refused_clearly(tmp_path: Path, given: dict[str, Any]) -> None:
    module, run_there, failed = SUBINTERPRETERS
    body = f"""
    {module}
    import ech_workers.tunnel

    code = "import ech_workers.tunnel"
    try:
        {run_there}
    except interpreters.{failed} as error:
        print("ImportError" in str(error) and "interpreter" in str(error))
    """
    assert told(tmp_path, given, body) == ["True"]


def test_free_threaded_python_is_refused_clearly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.abiflags = 't'; import ech_workers"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode != 0
    assert "ImportError: ech_workers does not support free-threaded Python" in done.stderr


def test_a_large_answer_comes_whole(tmp_path: Path, given: dict[str, Any]) -> None:
    body = f"""
    from ech_workers import Tunnel
    with Tunnel(**options) as tunnel:
        print(fetch(tunnel, {SAMPLE}))
    """
    assert told(tmp_path, given, body) == ["True"]
