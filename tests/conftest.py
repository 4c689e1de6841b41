"""What holds for every test."""

import signal

from hypothesis import HealthCheck, settings

# A loaded machine is no failure: properties are about what happens, never about how fast.
settings.register_profile("pisync", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pisync")

# A shell starts what it puts in the background with Ctrl-C ignored, and programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
