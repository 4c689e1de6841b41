"""When did it happen? The receiver's best estimate, and how far to trust it.

synced     the device's kernel called its clock synchronised, so the claim stands
corrected  the clock was unset, but the moment this boot began is known: boot time runs right on any clock. It is known
           from a batch sent in the same boot (arrival - boot time when sent), or else from an event of the same boot
           recorded while the clock was synchronised
estimated  neither: the claim, moved between its neighbours in the stream, which is in the order of recording. The shift
           of a boot only grows, so its events keep their order

Clocks describe the moment of recording. An app's own, earlier time keeps its distance to it; an app's time ahead of the
device's clock comes from another clock and is taken as it is. Every estimate lies between EARLIEST_MS and AHEAD_MS
after arrival, whatever was claimed.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Final

from pisync_common.models import Stamp
from pisync_common.times import format_ms
from pisync_receiver.domain.submissions import Event

SYNCED: Final = 0
CORRECTED: Final = 1
ESTIMATED: Final = 2
QUALITIES: Final = ("synced", "corrected", "estimated")
"""Names of the numbers above, which the store keeps."""

AHEAD_MS: Final = 300_000
"""How far ahead of its arrival a claim is still believed."""
EARLIEST_MS: Final = 1_577_836_800_000
"""2020-01-01: nothing was recorded before PiSync existed."""
BOOTTIME_MAX_MS: Final = 10 * 366 * 86_400_000
"""Ten years: a longer boot time is a mistake, such as nanoseconds, and says nothing."""

Best = tuple[int, int]
"""Milliseconds since 1970, and SYNCED, CORRECTED or ESTIMATED."""
Neighbours = tuple[int | None, int | None]
"""The best times of the stored events before the first event and after the last, if there are any."""

_recorded_ms: Final = attrgetter("recorded_ms")
_SHORTEST: Final = len("2026-11-23T10:00:00Z")
_LAST_MS: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 1000 + 999
_FIRST_MS: Final = int(datetime(1, 1, 1, tzinfo=UTC).timestamp()) * 1000


def shown(ms: int) -> str:
    """A stored time as RFC 3339 text. Never raises: a value outside years 1 to 9999 is shown as the nearest."""
    return format_ms(min(max(ms, _FIRST_MS), _LAST_MS))


def claimed(text: str, ms: int) -> str:
    """A time as it was sent; the receiver's own estimate for text that no version accepts any more."""
    return text if text.isascii() and len(text) >= _SHORTEST else shown(ms)


def effective_ms(claimed_ms: int, received_ms: int) -> int:
    """The claimed time of a sync event if it is plausible, else the time of receipt."""
    return claimed_ms if EARLIEST_MS <= claimed_ms <= received_ms + AHEAD_MS else received_ms


def epochs(events: Iterable[Event], sent: Stamp | None, received_ms: int, known: Mapping[str, int]) -> dict[str, int]:
    """When each boot began, as far as it can be known: boot id to milliseconds since 1970.

    `known` are epochs learned from earlier batches; the earliest is the best, as a batch can only be late.
    """
    began = dict(known)
    if sent is not None and sent.boottime_ms <= BOOTTIME_MAX_MS:
        epoch = received_ms - sent.boottime_ms
        began[sent.boot_id] = min(epoch, began.get(sent.boot_id, epoch))
    for event in events:
        boot, boottime = event.boot_id, event.boottime_ms
        if boot is None or boot in began or boottime is None or not event.clock_synced or boottime > BOOTTIME_MAX_MS:
            continue
        if (claimed := _claim(event)) <= received_ms + AHEAD_MS:
            began[boot] = claimed - boottime
    return began


def best_times(
    events: Sequence[Event],
    *,
    epochs: Mapping[str, int],
    received_ms: int,
    neighbours: Neighbours,
    sent_boot: str | None = None,
) -> list[Best]:
    """The best time of each of `events`, which are in the order of their seq.

    Those of earlier boots were recorded before `sent_boot` began, the boot in which they were sent.
    """
    latest = received_ms + AHEAD_MS
    found: list[Best | None] = []
    for event in events:
        boot, boottime = event.boot_id, event.boottime_ms
        if event.clock_synced and (claimed := _claim(event)) <= latest:
            found.append((claimed, SYNCED))
        elif boot is not None and boottime is not None and boot in epochs and boottime <= BOOTTIME_MAX_MS:
            found.append((epochs[boot] + boottime, CORRECTED))
        else:
            found.append(None)
    if None in found:
        before_ms, after_ms = neighbours
        high = received_ms if after_ms is None else min(after_ms, received_ms)
        if sent_boot is not None and sent_boot in epochs and events[-1].boot_id not in (None, sent_boot):
            high = min(high, epochs[sent_boot])
        recorded = _between(events, found, before_ms, high)
    else:
        recorded = found  # type: ignore[assignment]
    times = [best_ms for best_ms, _ in recorded]
    if {*map(_recorded_ms, events)} == {None} and min(times) >= EARLIEST_MS and max(times) <= latest:
        return recorded  # as `occurred` would leave them
    return [
        (occurred(event.occurred_ms, event.recorded_ms, best_ms, received_ms), quality)
        for event, (best_ms, quality) in zip(events, recorded, strict=True)
    ]


def _claim(event: Event) -> int:
    """The moment of recording by the device's clock."""
    return event.occurred_ms if event.recorded_ms is None else event.recorded_ms


def occurred(occurred_ms: int, recorded_ms: int | None, ms: int, received_ms: int) -> int:
    """From `ms`, the best time of recording, to that of the event; the others are as claimed."""
    if recorded_ms is not None:
        ms = occurred_ms if occurred_ms > recorded_ms else ms - (recorded_ms - occurred_ms)
    return min(max(ms, EARLIEST_MS), received_ms + AHEAD_MS)


def _between(events: Sequence[Event], found: Sequence[Best | None], low: int | None, last_high: int) -> list[Best]:
    """Fill in what `found` lacks; times never go back from `low` on, nor past what is known to come after."""
    best: list[Best] = []
    shift, boot = 0, None
    for event, known, high in zip(events, found, _highs(found, last_high), strict=True):
        time = known
        if time is None:
            if event.boot_id != boot:
                shift, boot = 0, event.boot_id
            moved = _claim(event) + shift
            if low is not None and moved < low:
                shift += low - moved
                moved = low
            time = (min(moved, high), ESTIMATED)
        best.append(time)
        low = time[0] if low is None else max(low, time[0])
    return best


def _highs(found: Sequence[Best | None], last: int) -> list[int]:
    """For each event the earliest known time that comes after it."""
    highs = []
    for known in reversed(found):
        highs.append(last)
        if known is not None:
            last = min(last, known[0])
    highs.reverse()
    return highs
