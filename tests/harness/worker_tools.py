"""Programs from npm for the Worker: two versions of the runtime, the bundler, the type checker, the linter. Node.js runs none of them."""

import hashlib
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from .built import ROOT, building
from .processes import run
from .requirements import missing

PACKAGES = ROOT / "tests" / "worker"
TEMPLATE = ROOT / "python" / "ech_workers" / "worker" / "template"
INSTALL_TIMEOUT = 600.0


class UnavailableError(Exception):
    """They cannot be had here; the message says why."""


@dataclass(frozen=True)
class WorkerTools:
    modules: Path
    """The folder node_modules."""

    @property
    def esbuild(self) -> Path:
        return self.modules / "@esbuild" / "linux-x64" / "bin" / "esbuild"

    @property
    def tsc(self) -> Path:
        return self.modules / "@typescript" / "typescript-linux-x64" / "lib" / "tsc"

    @property
    def biome(self) -> Path:
        return self.modules / "@biomejs" / "cli-linux-x64" / "biome"

    def workerd(self, version: str) -> Path:
        """version: new, or old."""
        return self.modules / f"workerd-{version}" / "bin" / "workerd"

    def version(self, version: str) -> str:
        """The number of the runtime."""
        package = json.loads((self.modules / f"workerd-{version}" / "package.json").read_text())
        return str(package["version"])

    def bundle(self, main: Path, out: Path, *options: str) -> None:
        """As wrangler bundles it."""
        done = run(
            self.esbuild,
            main,
            f"--outfile={out}",
            *("--bundle", "--format=esm", "--target=es2022", "--external:cloudflare:*", "--loader:.html=text"),
            "--minify",
            *options,
        )
        assert done.returncode == 0, done.stderr

    def check_types(self, folder: Path) -> str:
        """What the type checker complains of in a project; nothing if all is well."""
        types = folder / "node_modules"
        if not folder.is_relative_to(self.modules.parent) and not types.exists():
            types.symlink_to(self.modules)
        done = run(self.tsc, "--project", folder)
        return done.stdout + done.stderr if done.returncode else ""


def install() -> WorkerTools:
    """Installs them below target/, once for each lock file. Raises UnavailableError."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise UnavailableError("the Worker's runtime is tested on Linux on x86-64")
    npm = shutil.which("npm")
    lock = (PACKAGES / "package-lock.json").read_bytes()
    with building(f"worker-tools/{hashlib.sha256(lock).hexdigest()[:16]}") as folder:
        whole = folder / "installed"
        if not whole.exists():
            if npm is None:
                raise UnavailableError("npm is not installed: apt install npm")
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(PACKAGES / name, folder / name)
            done = run(*(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"), cwd=folder, timeout=INSTALL_TIMEOUT)
            if done.returncode != 0:
                raise UnavailableError(f"the Worker's tools cannot be installed: {' '.join(done.stderr.split())}")
            whole.touch()
    return WorkerTools(folder / "node_modules")


def worker_tools() -> WorkerTools:
    """For tests: a skip without them, a failure in CI."""
    try:
        return install()
    except UnavailableError as error:
        missing(str(error))
