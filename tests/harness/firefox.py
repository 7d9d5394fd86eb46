"""Firefox without a window, with a profile that trusts the tests' authority and asks nobody outside."""

from pathlib import Path

from .processes import Process, Processes, run
from .requirements import program

# No call home: what is recorded is the page's own. Nothing here touches TLS or HTTP.
PREFERENCES: dict[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.safebrowsing.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One installation; each page is opened with a profile of its own."""

    def __init__(self, processes: Processes, authority: Path) -> None:
        self.path = program("firefox-esr", "firefox-esr")
        self._certutil = program("certutil", "libnss3-tools")
        self._processes = processes
        self._authority = authority

    @property
    def major_version(self) -> int:
        """For example 153."""
        said = run(self.path, "--version").stdout  # "Mozilla Firefox 153.7.0esr"
        return int(said.split()[2].partition(".")[0])

    def open(self, profile: Path, url: str, preferences: dict[str, bool | int | str]) -> Process:
        """Opens the page in a new profile; the browser runs until it is stopped."""
        profile.mkdir()
        database = f"sql:{profile}"
        run(self._certutil, "-N", "-d", database, "--empty-password")
        run(self._certutil, "-A", "-d", database, "-n", "tests", "-t", "C,,", "-i", self._authority)
        lines = (f"user_pref({text(name)}, {text(value)});" for name, value in {**PREFERENCES, **preferences}.items())
        (profile / "user.js").write_text("\n".join(lines))
        return self._processes.start(
            self.path,
            *("--headless", "--no-remote", "--profile", profile, url),
            env={"HOME": str(profile), "MOZ_DISABLE_CONTENT_SANDBOX": "1"},
        )


def text(value: bool | int | str) -> str:
    """As JavaScript writes it."""
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
