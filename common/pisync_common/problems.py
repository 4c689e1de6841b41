"""The problem types of RFC 9457 that the receiver answers with and the agent understands."""

from typing import Final

CONTENT_TYPE: Final = "application/problem+json"
PREFIX: Final = "urn:pisync:problem:"


def problem_type(code: str) -> str:
    """Return the `type` of a problem, such as `urn:pisync:problem:unauthorized`."""
    return PREFIX + code
