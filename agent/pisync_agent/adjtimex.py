"""Whether the kernel calls the wall clock synchronised: `adjtimex`, by way of the C library."""

import ctypes
from collections.abc import Callable
from typing import Final

_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x0040


def kernel_synced() -> Callable[[], bool]:
    """A call that asks the kernel; one that says "not synchronised" where the C library cannot ask."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return lambda: False

    def synced() -> bool:
        timex = _Timex()  # modes 0: only look
        state = adjtimex(ctypes.byref(timex))
        return 0 <= state < _TIME_ERROR and not timex.status & _STA_UNSYNC

    return synced


class _Timex(ctypes.Structure):
    """`struct timex`, as far as its `status`; the rest is room for what the kernel fills in."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("_rest", ctypes.c_byte * 256),
    )
