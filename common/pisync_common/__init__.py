"""What device and cloud agree on: limits, rules, models and the wire format.

Standard library only, so that it installs and starts fast on any Pi.
"""

__version__ = "0.3.0.dev0"
