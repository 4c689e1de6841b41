"""How long to wait after a failed sync run, and what `Retry-After` asks for: decisions without side effects."""

import random as random_module
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from pisync_common.backoff import Backoff, Uniform

if TYPE_CHECKING:
    from tenacity import RetryCallState

BASE_S: Final = 5.0
CAP_S: Final = 900.0
BELIEVED_S: Final = 24 * 3600.0
"""The longest `Retry-After` that is believed: a middlebox could name any."""

_SECONDS = re.compile(r"[0-9]{1,18}")


class RetryPolicy:
    """Wait `Retry-After` (at most 24 h) plus a random back-off (full jitter) that grows with failures in a row.

    Callable as a tenacity `wait`. It reads no clock: the caller waits on the monotonic clock.
    """

    def __init__(self, *, base: float = BASE_S, cap: float = CAP_S, random: Uniform = random_module.uniform) -> None:
        self._backoff = Backoff(base=base, cap=cap, random=random)

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        """Return the seconds to wait after the n-th failure in a row; the receiver asked for `retry_after`."""
        return min(max(retry_after or 0.0, 0.0), BELIEVED_S) + self._backoff.delay(failures)

    def __call__(self, retry_state: "RetryCallState") -> float:
        outcome = retry_state.outcome
        error = outcome.exception() if outcome is not None else None
        return self.delay(retry_state.attempt_number, getattr(error, "retry_after", None))


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, 0 to 24 h; None if it is missing or unreadable.

    It may be seconds or an HTTP date in any of the three forms of RFC 9110. `now` is aware; the answer's own `Date` is
    the better now, for the device's clock may be wrong.
    """
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), BELIEVED_S)
    moment = parse_http_date(text)
    return None if moment is None else min(max((moment - now).total_seconds(), 0.0), BELIEVED_S)


def parse_http_date(text: str) -> datetime | None:
    """Return an HTTP date (IMF-fixdate, RFC 850 or asctime), aware; None if it is not one."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
