"""How long to wait and how much to send at once: decisions without side effects, which tests can read."""

import random as random_module
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from pisync_common.backoff import Backoff, Uniform
from pisync_common.limits import BATCH_EVENTS, KIB, MIB

if TYPE_CHECKING:
    from tenacity import RetryCallState

BASE_S: Final = 5.0
CAP_S: Final = 900.0
BELIEVED_S: Final = 24 * 3600.0
"""The longest `Retry-After` that is believed: whoever sits in the middle could name any."""

FIRST_BYTES: Final = 64 * KIB
MOST_BYTES: Final = 2 * MIB
"""A batch's events before compression. More would need more memory and save no bytes on the wire."""
LEAST_BYTES: Final = 4 * KIB
"""Slowness alone makes no batch smaller than this: below it, the way there and back takes longest."""
CAREFUL: Final = 8
"""After a failure so many batches go well before a larger one is tried: what failed may well fail again."""
AIM_S: Final = 10.0
"""About how long one request should take: a cut costs no more than that."""

_SECONDS = re.compile(r"[0-9]{1,18}")


class RetryPolicy:
    """Full jitter after failures in a row; `Retry-After` is a floor below that.

    Callable as a tenacity `wait`. It looks at no clock: what it returns is to be waited for on the monotonic one.
    """

    def __init__(self, *, base: float = BASE_S, cap: float = CAP_S, random: Uniform = random_module.uniform) -> None:
        self._backoff = Backoff(base=base, cap=cap, random=random)

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the n-th failure in a row; `retry_after` is what the receiver asked for."""
        return min(max(retry_after or 0.0, 0.0), BELIEVED_S) + self._backoff.delay(failures)

    def __call__(self, retry_state: "RetryCallState") -> float:
        outcome = retry_state.outcome
        error = outcome.exception() if outcome is not None else None
        return self.delay(retry_state.attempt_number, getattr(error, "retry_after", None))


class BatchSize:
    """How much goes into one request: it follows the link, so that a request takes about `AIM_S` seconds."""

    def __init__(self, *, first: int = FIRST_BYTES, most: int = MOST_BYTES, aim: float = AIM_S) -> None:
        self._most = most
        self._aim = aim
        self.bytes = min(first, most)
        """Bytes of events before compression that the next batch may have."""
        self.events = BATCH_EVENTS
        """Events that the next batch may have."""
        self._careful = 0

    def succeeded(self, *, events: int, bytes: int, seconds: float) -> None:
        """A batch of so many events went in so many seconds: grow or shrink towards the aim, at most twofold."""
        factor = min(2.0, max(0.5, self._aim / max(seconds, 0.001)))
        if factor > 1.0:
            if bytes * 2 >= self.bytes or events >= self.events:  # it says something about larger ones
                self._grow(factor)
        else:
            self.bytes = min(self.bytes, max(LEAST_BYTES, int(bytes * factor)))

    def failed(self, *, events: int, bytes: int) -> None:
        """A batch of so many events was too large, or took too long: halve it, down to one event."""
        self.events = max(1, events // 2)
        self.bytes = max(1, min(self.bytes, bytes) // 2)
        self._careful = CAREFUL

    def _grow(self, factor: float) -> None:
        if self._careful:
            self._careful -= 1
            return
        self.bytes = min(self._most, int(self.bytes * factor))
        self.events = min(BATCH_EVENTS, max(self.events + 1, int(self.events * factor)))


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks for, 0 to 24 h; None if it is missing or makes no sense.

    Both forms: seconds, and an HTTP date in any of the three ways RFC 9110 knows. `now` is aware; where the answer
    has a `Date` of its own that is the better now, for the device's clock may be wrong.
    """
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), BELIEVED_S)
    moment = parse_http_date(text)
    return None if moment is None else min(max((moment - now).total_seconds(), 0.0), BELIEVED_S)


def parse_http_date(text: str) -> datetime | None:
    """An HTTP date (IMF-fixdate, RFC 850 or asctime), aware; None if it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
