"""The examples in deploy/: hadolint on the Containerfile, systemd's own judgement of the units, YAML that is well-formed, and
Kubernetes' own schemas for what is Kubernetes'."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent

# The exposure of `systemd-analyze security`, in tenths.
EXPOSURE = 20


def complaints(*command: str | Path) -> str:
    """What a linter says when it does not pass."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ended.stdout + ended.stderr if ended.returncode else ""


def units() -> str:
    """What systemd has against the units; nothing where it is not there."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None or not old_enough(analyze):
        print("deploy: the units are not checked: systemd-analyze is not here, or older than 250")
        return ""
    return "".join(
        complaints(analyze, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", unit)
        for unit in sorted((DEPLOY / "systemd").glob("*.service"))
    )


def old_enough(analyze: str) -> bool:
    """Whether it judges units that are not installed."""
    said = subprocess.run([analyze, "--version"], capture_output=True, text=True).stdout
    version = re.match(r"systemd (\d+)", said)
    return version is not None and int(version.group(1)) >= 250


def main() -> int:
    found = complaints(BIN / "hadolint", DEPLOY / "container" / "Containerfile")
    found += complaints(BIN / "yamllint", "--strict", "--config-data", YAML, DEPLOY, ROOT / ".github")
    # Strictly: a field that the schema does not know, such as a mistyped one, is an error. Kubernetes passes over it.
    found += complaints(BIN / "kubernetes-validate", "--strict", *sorted((DEPLOY / "kubernetes").glob("*.yaml")))
    found += units()
    print(found.strip() or "deploy: clean")
    return 1 if found else 0


# Line lengths and the form of lists and comments are a matter of taste.
YAML = "{extends: default, rules: {line-length: disable, document-start: disable, truthy: {check-keys: false}, braces: {max-spaces-inside: 1}, comments: disable}}"


if __name__ == "__main__":
    sys.exit(main())
