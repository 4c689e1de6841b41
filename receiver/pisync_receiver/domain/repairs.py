"""Better times for events that are stored already.

A boot's beginning may become known after events of it were stored as estimates: from an event that was recorded in the
same boot after the clock was synchronised. Its earlier events stand just before it in the stream, and are corrected
from there down, REPAIRED_MAX rows a batch; the row of the stream says how far that went, and the next batch goes on.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from msgspec.structs import replace

from pisync_common.errors import RuleError
from pisync_common.times import parse_ms
from pisync_receiver.domain.facts import Facts, Place, StreamName
from pisync_receiver.domain.rows import EarlierEvent, Repaired, StoredEvent, Stream
from pisync_receiver.domain.state import BOOTS_KEPT, Account, State
from pisync_receiver.domain.submissions import EventBatch
from pisync_receiver.domain.times import BOOTTIME_MAX_MS, CORRECTED, ESTIMATED, epochs, occurred

REPAIRED_MAX: Final = 1_000
"""Earlier events that are looked at with one batch."""

_seq: Final = attrgetter("seq")


def wanted(facts: Facts, batches: Iterable[EventBatch]) -> list[tuple[str, str, int, str, int]]:
    """Return which earlier events to fetch for a group's batches."""
    found = {}
    begun: set[StreamName] = set()
    for batch in batches:
        name = (batch.device_id, batch.stream)
        row = facts.streams.get(name)
        if not batch.events or row is None:
            continue
        if new := _new_boots(row, batch):
            first = min(batch.events, key=_seq)
            if first.boot_id in new and first.boot_id in _began(Account(row, ()), batch):
                found[*name, first.seq] = first.boot_id
        elif name not in begun and (left := Account(row, ()).unrepaired()):
            boot, _, upto = left[-1]
            found[*name, upto + 1] = boot
        begun.add(name)
    return [(*place, boot, REPAIRED_MAX) for place, boot in found.items()]


def repair(state: State, account: Account, batch: EventBatch) -> None:
    """Remember the boots that a batch says the beginning of, and correct estimates that stand before it."""
    if new := _new_boots(account.row, batch):
        began = _began(account, batch)
        first = min(batch.events, key=_seq)
        learned = [boot for boot in began if boot in new]
        for boot in learned[-BOOTS_KEPT:]:  # of a boot that begins within the batch, nothing is stored
            account.learn(boot, began[boot], first.seq - 1 if boot == first.boot_id else 0)
    for boot, epoch_ms, upto in account.unrepaired():
        place = (batch.device_id, batch.stream, upto + 1)
        if place in state.facts.earlier or place[:2] not in state.facts.streams:
            _correct(state, account, place, (boot, epoch_ms))


def _new_boots(row: Stream, batch: EventBatch) -> set[str]:
    """Return the boots of the events that the stream's row does not have."""
    boots = {event.boot_id for event in batch.events}
    return {boot for boot in boots if boot is not None and f'"{boot}"' not in row.boots}


def _began(account: Account, batch: EventBatch) -> dict[str, int]:
    return epochs(batch.events, batch.sent, batch.received_ms, account.known_boots())


def _correct(state: State, account: Account, place: Place, began: tuple[str, int]) -> None:
    """Correct the estimates of one boot before a place, from there down; remember where to go on."""
    device_id, stream, _ = place
    boot, epoch_ms = began
    waiting = state.new_events(place)
    rows: Sequence[EarlierEvent | StoredEvent] = sorted(
        [*map(state.changes.events.__getitem__, waiting.values()), *state.facts.earlier.get(place, ())],
        key=_seq,
        reverse=True,
    )[:REPAIRED_MAX]
    for row in rows:
        if row.boot_id != boot:
            account.learn(boot, epoch_ms, 0)
            return
        if row.quality == ESTIMATED and (best_ms := _best_ms(row, epoch_ms)) is not None:
            state.sums.move_event(row, best_ms)
            if isinstance(row, StoredEvent):
                state.changes.events[waiting[row.seq]] = replace(row, best_ms=best_ms, quality=CORRECTED)
            else:
                state.changes.repaired.append(Repaired(device_id, stream, row.seq, best_ms, CORRECTED))
            if row.seq == account.row.highest:
                account.row.best_ms = best_ms
    account.learn(boot, epoch_ms, rows[-1].seq - 1 if len(rows) == REPAIRED_MAX else 0)


def _best_ms(row: EarlierEvent | StoredEvent, epoch_ms: int) -> int | None:
    """Return when it happened; None if its own values do not say."""
    if row.boottime_ms is None or row.boottime_ms > BOOTTIME_MAX_MS:
        return None
    try:
        occurred_ms = parse_ms(row.occurred_at)
        recorded_ms = None if row.recorded_at is None else parse_ms(row.recorded_at)
    except RuleError:  # stored by an earlier version, which took other texts
        return None
    return occurred(occurred_ms, recorded_ms, epoch_ms + row.boottime_ms, row.received_ms)
