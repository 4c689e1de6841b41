"""Telling operators, once, when a device keeps failing and when it recovers."""
