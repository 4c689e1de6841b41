"""Servers, programs and rights that tests need: where one is missing, tests are skipped, or in CI they fail."""

import os
import shutil
from collections.abc import Callable
from typing import Final, NoReturn

import pytest

NONE_MAY_BE_MISSING: Final = os.environ.get("CI") == "true" or os.environ.get("PISYNC_TEST_SERVICES") == "install"
"""As `scripts/services` reads it."""


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where everything has to be there."""
    if NONE_MAY_BE_MISSING:
        pytest.fail(f"{what}, and here every test has to run")
    pytest.skip(what)


def installed(name: str) -> str:
    """Return the path of an installed program; otherwise the test ends as `missing` says."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return found or missing(f"{name} is not installed")


def root(purpose: str) -> None:
    """End the test as `missing` says, unless it runs as root."""
    if os.geteuid() != 0:
        missing(f"{purpose} needs root")


def needs(server: str, variable: str, connect: Callable[[], object], *errors: type[Exception]) -> pytest.MarkDecorator:
    """Return a mark that skips tests while `connect` raises one of `errors`, unless every server has to be there."""
    absent = False
    try:
        connect()
    except errors:
        if NONE_MAY_BE_MISSING:
            raise
        absent = True
    return pytest.mark.skipif(absent, reason=f"no {server} answers; name one with {variable} to run these tests")
