"""When did it happen? The receiver's best estimate, and how far to trust it.

synced     the device's kernel called its clock synchronised, so its claim stands
corrected  the clock was unset, but the moment this boot began is known: boot time runs right on any clock. It is known
           from a batch sent in the same boot (arrival - boot time when sent), or else from an event of the same boot
           that happened while the clock was synchronised
estimated  neither: the claim, moved between its neighbours in the stream, which is in the order of recording, and not
           past its arrival. One boot is moved as a whole, so that its events keep their distances.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from pisync_common.models import Stamp

SYNCED: Final = 0
CORRECTED: Final = 1
ESTIMATED: Final = 2
QUALITIES: Final = ("synced", "corrected", "estimated")
"""Names of the numbers above, which the store keeps."""

AHEAD_MS: Final = 300_000
"""How far ahead of its arrival a claim may be before nobody believes that its clock was synchronised."""


class Claim(Protocol):
    """What the estimate looks at in an event."""

    @property
    def occurred_ms(self) -> int: ...
    @property
    def boot_id(self) -> str | None: ...
    @property
    def boottime_ms(self) -> int | None: ...
    @property
    def clock_synced(self) -> bool: ...


Best = tuple[int, int]
"""Milliseconds since 1970, and SYNCED, CORRECTED or ESTIMATED."""

Neighbours = tuple[int | None, int | None]
"""The best times of what stands in the stream before the first event and after the last, where there is any."""


def epochs(events: Iterable[Claim], sent: Stamp | None, received_ms: int, known: Mapping[str, int]) -> dict[str, int]:
    """When each boot began, as far as anyone can tell: boot id to milliseconds since 1970.

    `known` are epochs learned from earlier batches; the earliest is the best, as a batch can only be late.
    """
    began = dict(known)
    if sent is not None:
        epoch = received_ms - sent.boottime_ms
        began[sent.boot_id] = min(epoch, began.get(sent.boot_id, epoch))
    for event in events:
        boot, boottime = event.boot_id, event.boottime_ms
        if boot is not None and boottime is not None and boot not in began and _believed(event, received_ms):
            began[boot] = event.occurred_ms - boottime
    return began


def best_times(
    events: Sequence[Claim], *, epochs: Mapping[str, int], received_ms: int, neighbours: Callable[[], Neighbours]
) -> list[Best]:
    """The best time of each of `events`, which follow each other in the order of their seq.

    `neighbours` is asked only where something has to be estimated.
    """
    latest = received_ms + AHEAD_MS
    found: list[Best | None] = []
    for event in events:
        if event.clock_synced and event.occurred_ms <= latest:
            found.append((event.occurred_ms, SYNCED))
        elif event.boottime_ms is not None and event.boot_id is not None and event.boot_id in epochs:
            found.append((epochs[event.boot_id] + event.boottime_ms, CORRECTED))
        else:
            found.append(None)
    if None not in found:
        return found  # type: ignore[return-value]
    after_ms, before_ms = neighbours()
    return _between(events, found, after_ms, received_ms if before_ms is None else min(before_ms, received_ms))


def _between(events: Sequence[Claim], found: Sequence[Best | None], low: int | None, last_high: int) -> list[Best]:
    """Fill in what `found` lacks; times never go back from `low` on, nor past what is known to come after."""
    best: list[Best] = []
    shift, boot = 0, None
    for event, known, high in zip(events, found, _highs(found, last_high), strict=True):
        time = known
        if time is None:
            if event.boot_id != boot:
                shift, boot = 0, event.boot_id
            moved = event.occurred_ms + shift
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


def _believed(event: Claim, received_ms: int) -> bool:
    return event.clock_synced and event.occurred_ms <= received_ms + AHEAD_MS
