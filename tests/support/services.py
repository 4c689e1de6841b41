"""Whether a service that does not answer may be left out, or is a failure."""

import os
from typing import Final

NOTHING_LEFT_OUT: Final = os.environ.get("CI") == "true" or os.environ.get("PISYNC_TEST_SERVICES") == "install"
"""As `scripts/services` reads it: then the tests of a service fail where it is missing, and are never skipped."""
