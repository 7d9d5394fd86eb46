"""Chromium without a window: through a proxy, or with a page that a test looks into."""

import base64
import contextlib
import itertools
import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

from .processes import Process, Processes
from .requirements import program
from .waiting import wait_until

# Cold, on a busy machine.
START_TIMEOUT = 60.0
ANSWER_TIMEOUT = 20.0


def open_page(processes: Processes, profile: Path, proxy: str, url: str) -> Process:
    """Opens the page; the browser runs until it is stopped. proxy: for example socks5://127.0.0.1:1080."""
    # Loopback too goes through the proxy.
    return _start(processes, profile, f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>", url)


def _start(processes: Processes, profile: Path, *arguments: str) -> Process:
    return processes.start(
        program("chromium", "chromium"),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
        f"--user-data-dir={profile}",
        *arguments,
        env={"HOME": str(profile)},
    )


class RefusedError(Exception):
    """The browser does not do what it was told."""


class Page:
    """A page that is looked into by the DevTools protocol, without a proxy."""

    def __init__(self, processes: Processes, profile: Path, url: str, *arguments: str) -> None:
        self._process = _start(processes, profile, "--no-proxy-server", "--remote-debugging-port=0", *arguments, url)
        told = profile / "DevToolsActivePort"
        wait_until(lambda: told.exists() and told.read_text().count("\n"), "the browser listens", START_TIMEOUT)
        port, path = told.read_text().split()
        self._numbers = itertools.count(1)
        self._exit = contextlib.ExitStack()
        self._connection = self._exit.enter_context(connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_size=None))
        wait_until(self._targets, "the page is there", START_TIMEOUT)
        attached = self._call("Target.attachToTarget", targetId=self._targets()[0], flatten=True)
        self._session = attached["sessionId"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; of a promise what it comes to."""
        found: dict[str, Any] = {}

        def tried() -> bool:
            try:
                found.update(
                    self._call(
                        "Runtime.evaluate", self._session, expression=expression, awaitPromise=True, returnByValue=True
                    )
                )
            except RefusedError as error:
                # Between two documents there is no place to evaluate it in.
                if not re.search("execution context|navigated", str(error)):
                    raise
            return bool(found)

        wait_until(tried, "a document is there", START_TIMEOUT)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        self._exit.close()
        self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def screenshot(self, file: Path) -> None:
        """The page as it looks now, as a PNG."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", self._session)["data"]))

    def emulate(self, *, width: int, height: int, dark: bool) -> None:
        """Another screen."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", self._session, **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", self._session, features=[scheme])

    def _targets(self) -> list[str]:
        found = self._call("Target.getTargets")["targetInfos"]
        return [target["targetId"] for target in found if target["type"] == "page"]

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._connection.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self._connection.recv(timeout=ANSWER_TIMEOUT))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RefusedError(answer["error"]["message"])
                result: dict[str, Any] = answer["result"]
                return result
