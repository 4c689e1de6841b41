"""Servers that tests need: whether a server that does not answer skips the tests, or fails them."""

import os
from collections.abc import Callable
from typing import Final

import pytest

_NONE_MAY_BE_MISSING: Final = os.environ.get("CI") == "true" or os.environ.get("PISYNC_TEST_SERVICES") == "install"
"""As `scripts/services` reads it."""


def needs(server: str, variable: str, connect: Callable[[], object], *errors: type[Exception]) -> pytest.MarkDecorator:
    """Return a mark that skips tests while `connect` raises one of `errors`, unless every server has to be there."""
    missing = False
    try:
        connect()
    except errors:
        if _NONE_MAY_BE_MISSING:
            raise
        missing = True
    return pytest.mark.skipif(missing, reason=f"no {server} answers; name one with {variable} to run these tests")
