"""Which `traceparent` names a trace."""

import pytest

from pisync_receiver.tracing import trace_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("header", [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01-more"])
def test_a_good_one(header: str) -> None:
    assert trace_of(header.encode()) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        TRACE,
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f'00-{TRACE[:-1]}"-{SPAN}-01',
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_a_bad_one(header: str) -> None:
    assert trace_of(header.encode()) is None


def test_none() -> None:
    assert trace_of(None) is None
