"""Programs that tests need beyond the build's own: without them a test is skipped on a user's machine and fails in CI."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def program(name: str, package: str) -> Path:
    """The path of a program, or a skip (a failure in CI) that says what to install."""
    found = shutil.which(name)
    if found is None and package in os.environ.get("TESTS_WITHOUT", "").split():
        pytest.skip(f"{name} is not to be had here (TESTS_WITHOUT)")
    if found is None:
        missing(f"{name} is not installed: apt install {package}")
    return Path(found)


def missing(reason: str) -> NoReturn:
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
