"""Chromium without a window, through a proxy."""

from pathlib import Path

from .processes import Process, Processes
from .requirements import program


def open_page(processes: Processes, profile: Path, proxy: str, url: str) -> Process:
    """Opens the page; the browser runs until it is stopped. proxy: for example socks5://127.0.0.1:1080."""
    return processes.start(
        program("chromium", "chromium"),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
        # Loopback too goes through the proxy.
        *(f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>", f"--user-data-dir={profile}", url),
        env={"HOME": str(profile)},
    )
