"""What holds for every test."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Helpers and conformance classes explain a failed assertion as tests do.
pytest.register_assert_rewrite("tests.conformance", "tests.support")

# A loaded machine is no failure: properties are about what happens, never about how fast.
settings.register_profile("pisync", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pisync")

# A shell starts what it puts in the background with Ctrl-C ignored, and programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """Undo the umask that a command sets in this process."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
