"""The status page in a real browser: the figures move, a lost feed is said, and pages of other sites get nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ech_workers.errors import TokenError
from harness.chromium import START_TIMEOUT, Page
from harness.curl import fetch
from harness.firefox import Firefox
from harness.status import Made, served, status
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ech_workers.status.port import StatusPort
    from harness.authority import Authority
    from harness.processes import Processes
    from harness.tunnel import ProxyProgram, Site

SEEN = "document.body ? document.body.innerText : ''"
NOTICE = "document.getElementById('notice').hidden ? '' : document.getElementById('notice').textContent"
OLD = "document.body.className == 'lost' && Number(getComputedStyle(document.getElementById('seen')).opacity) < 1"


def status_url(proxy: ProxyProgram) -> str:
    return proxy.process.wait_line(r"status page on (http://\S+)")[1]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return tmp_path / "profile"


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def serving(made: Made) -> Iterator[StatusPort]:
    with served(made) as opened:
        yield opened


def test_the_figures_follow_a_transfer_and_a_lost_feed_is_said_until_it_is_back(
    site: Site, processes: Processes, targets: dict[str, int], profile: Path
) -> None:
    server = site.server()
    proxy = site.proxy(server.port, "--status-listen", "0")
    url = status_url(proxy)
    with Page(processes, profile, url) as page:
        wait_until(lambda: "up 0 B, down 0 B" in page.evaluate(SEEN), "the first frame is drawn")
        text = page.evaluate(SEEN)
        for part in (
            "ech-workers up",
            "accepted, the network sees public.ech-workers.test",
            "firefox-153",
            "WebSocket",
        ):
            assert part in text
        assert page.evaluate(NOTICE) == ""
        assert page.evaluate("getComputedStyle(document.querySelector('.good')).color") != page.evaluate(
            "getComputedStyle(document.body).color"
        ), "its own style does not apply"
        fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/5000000")
        wait_until(lambda: "down 4.8 MiB" in page.evaluate(SEEN), "the figures have moved")
        proxy.process.stop()
        wait_until(
            lambda: re.search(r"^No connection to the proxy since \d\d:\d\d:\d\d", page.evaluate(NOTICE)), "it says so"
        )
        assert page.evaluate(OLD), "old figures look like new ones"
        assert "Last seen at" in page.evaluate(SEEN)
        assert page.evaluate("document.title") == "no connection - ech-workers"
        site.proxy(server.port, "--status-listen", url.removeprefix("http://").removesuffix("/"))
        wait_until(lambda: page.evaluate(NOTICE) == "", "it is back by itself", 40)
        assert not page.evaluate(OLD)
        assert "up 0 B, down 0 B" in page.evaluate(SEEN)


def test_a_feed_that_falls_silent_is_given_up(
    serving: StatusPort, processes: Processes, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands and nothing comes, as when the network is gone: the figures are not passed off as fresh."""
    with Page(processes, profile, f"http://127.0.0.1:{serving.addresses[0][1]}/") as page:
        wait_until(lambda: "hidden.test" in page.evaluate(SEEN), "the first frame is drawn")
        monkeypatch.setattr(serving, "_look", lambda now: False)
        monkeypatch.setattr(serving, "_is_watched", lambda: False)
        wait_until(lambda: "No connection to the proxy" in page.evaluate(NOTICE), "it is noticed", 15)
        assert page.evaluate(OLD)
        monkeypatch.undo()
        wait_until(lambda: page.evaluate(NOTICE) == "", "it is back by itself", 40)


def test_a_proxy_of_another_version_is_not_misread(
    serving: StatusPort, processes: Processes, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that stayed open while the proxy was replaced by one with another schema."""
    with Page(processes, profile, f"http://127.0.0.1:{serving.addresses[0][1]}/") as page:
        wait_until(lambda: "hidden.test" in page.evaluate(SEEN), "the first frame is drawn")
        monkeypatch.setattr("ech_workers.status.feed.VERSION", 2)
        wait_until(lambda: "another version" in page.evaluate(NOTICE), "it says so")
        assert page.evaluate(OLD)


def test_what_strangers_wrote_is_text(serving: StatusPort, made: Made, processes: Processes, profile: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>&amp;"
    made.counters = {"last_target_failure": hostile}
    with Page(processes, profile, f"http://127.0.0.1:{serving.addresses[0][1]}/") as page:
        wait_until(lambda: hostile in page.evaluate(SEEN), "it is shown as it was written")
        assert page.evaluate("document.querySelectorAll('img, b').length") == 0
        assert page.evaluate("document.title") == "up - ech-workers"
        # Should it ever get in, it may not run.
        page.evaluate(f"document.getElementById('notice').innerHTML = {hostile!r}, null")
        page.evaluate("new Promise(done => setTimeout(done, 300))")
        assert page.evaluate("document.title") == "up - ech-workers"


def test_the_cause_is_a_banner_with_its_advice_and_a_countdown(
    serving: StatusPort, made: Made, processes: Processes, profile: Path
) -> None:
    cause = TokenError("the server does not accept this token")
    made.now = status(phase="waiting", cause=cause, cause_age=61.0, sessions=(), next_attempt_in=30.0)
    banner = "document.getElementById('banner')?.hidden === false ? document.getElementById('banner').innerText : ''"
    with Page(processes, profile, f"http://127.0.0.1:{serving.addresses[0][1]}/") as page:
        wait_until(lambda: "does not accept this token" in page.evaluate(banner), "the banner")
        said = page.evaluate(banner)
        assert "What to do: check --token and the path in --server" in said
        assert re.search(r"since 1 min, next attempt in (29|30) s", said)
        wait_until(lambda: re.search(r"next attempt in 2\d s", page.evaluate(banner)), "it counts down")
        made.now = status()
        wait_until(lambda: page.evaluate(banner) == "", "it goes with the cause")


def test_the_ports_can_be_copied_and_the_history_outlives_a_reload(
    serving: StatusPort, processes: Processes, profile: Path
) -> None:
    points = "(document.getElementById('line-down')?.getAttribute('points') || '').split(' ').length"
    with Page(processes, profile, f"http://127.0.0.1:{serving.addresses[0][1]}/") as page:
        wait_until(lambda: page.evaluate(points) >= 3, "a history of some seconds")
        ports = "[...document.querySelectorAll('#ports code')].map(one => one.textContent)"
        assert page.evaluate(ports) == ["socks5h://127.0.0.1:1080", "http://127.0.0.1:1080"]
        page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }, null")
        page.evaluate("document.querySelector('#ports button').click(), null")
        wait_until(lambda: page.evaluate("window.copied") == "socks5h://127.0.0.1:1080", "it is copied")
        page.evaluate("location.reload(), null")
        wait_until(lambda: page.evaluate(points) >= 3, "the history is there again")


def test_firefox_too_lets_the_page_open_its_feed(
    serving: StatusPort, made: Made, processes: Processes, authority: Authority, profile: Path
) -> None:
    """The policy's 'self' stands for ws: as well there."""
    firefox = Firefox(processes, authority.path)
    firefox.open(profile, f"http://127.0.0.1:{serving.addresses[0][1]}/", {})
    wait_until(lambda: made.looks >= 3, "it reads the feed", START_TIMEOUT)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 820, 1280])
def test_it_is_readable_on_a_phone_and_in_the_dark(
    serving: StatusPort, made: Made, processes: Processes, profile: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    cause = TokenError("the server does not accept this token")
    made.now = status(phase="degraded", cause=cause, cause_age=61.0, next_attempt_in=30.0)
    made.counters = {"last_target_failure": "a" * 200 + ".test:443: connection refused"}
    with Page(processes, profile, f"http://127.0.0.1:{serving.addresses[0][1]}/") as page:
        page.emulate(width=width, height=800, dark=dark)
        wait_until(lambda: "degraded" in page.evaluate(SEEN), "the first frame is drawn")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "it has to be scrolled sideways"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
        wait_until(lambda: page.evaluate("document.getElementById('line-down')?.getAttribute('points')"), "history")
        # Kept beside what else the run leaves, to be looked at.
        page.screenshot(tmp_path / f"page-{width}-{'dark' if dark else 'light'}.png")
        if width == 360:
            row = "getComputedStyle(document.querySelector('#sessions tbody tr')).display"
            assert page.evaluate(row) == "grid", "sessions are no cards"
        headers = page.evaluate("[...document.querySelectorAll('th')].map(cell => cell.scope)")
        assert set(headers) == {"row", "col"}


def test_a_page_of_another_site_gets_nothing(
    serving: StatusPort, processes: Processes, targets: dict[str, int], files: Path, profile: Path
) -> None:
    (files / "evil.html").write_text("<!doctype html><title>evil</title>")
    status_port = f"127.0.0.1:{serving.addresses[0][1]}"
    opened = """new Promise(done => {{
        const socket = new WebSocket("ws://{}/feed")
        socket.onmessage = () => done("figures")
        socket.onerror = () => done("refused")
    }})"""
    fetched = """fetch("http://{}/metrics", {{mode: "{}"}})
        .then(async answer => answer.type + (await answer.text()).length, () => "refused")"""
    rules = "--host-resolver-rules=MAP rebound.test 127.0.0.1"
    with Page(processes, profile, f"http://127.0.0.1:{targets['http']}/files/evil.html", rules) as page:
        wait_until(lambda: page.evaluate("document.title") == "evil", "the page is loaded")
        assert page.evaluate(opened.format(status_port)) == "refused"
        assert page.evaluate(fetched.format(status_port, "cors")) == "refused"
        assert page.evaluate(fetched.format(status_port, "no-cors")) in ("refused", "opaque0")
        rebound = status_port.replace("127.0.0.1", "rebound.test")
        page.evaluate(f"location = 'http://{rebound}/', null")
        wait_until(lambda: "name this port by its address" in page.evaluate(SEEN), "its answer is shown")
        assert page.evaluate(opened.format(rebound)) == "refused"
        assert "ech_workers" not in page.evaluate("fetch('/metrics').then(answer => answer.text())")
        # The same browser with the port's own page, so that a refusal above is no defect of the test.
        page.evaluate(f"location = 'http://{status_port}/', null")
        wait_until(lambda: "hidden.test" in page.evaluate(SEEN), "the page is shown")
        assert page.evaluate(opened.format(status_port)) == "figures"
