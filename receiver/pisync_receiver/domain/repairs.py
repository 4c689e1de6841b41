"""Better times for events that are stored already.

A boot's beginning may become known after events of it were stored as estimates: from an event that was recorded in the
same boot after the clock was synchronised. Its earlier events stand just before it in the stream, and are corrected
from there down, REPAIRED_MAX rows a batch; the row of the stream says how far that went, and the next batch goes on.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from pisync_common.errors import RuleError
from pisync_common.times import parse_ms
from pisync_receiver.domain.facts import Facts, StreamName
from pisync_receiver.domain.rows import EarlierEvent, Repaired
from pisync_receiver.domain.state import Account, State
from pisync_receiver.domain.submissions import EventBatch
from pisync_receiver.domain.times import BOOTTIME_MAX_MS, CORRECTED, ESTIMATED, epochs, occurred

REPAIRED_MAX: Final = 1_000
"""Earlier events that are looked at with one batch."""

_seq: Final = attrgetter("seq")


def wanted(facts: Facts, batches: Iterable[EventBatch]) -> list[tuple[str, str, int, str, int]]:
    """Return which earlier events to fetch: only for a stream's first batch, as the group stores nothing before it."""
    found: dict[StreamName, tuple[str, str, int, str, int] | None] = {}
    for batch in batches:
        name = (batch.device_id, batch.stream)
        row = facts.streams.get(name)
        if not batch.events or row is None or name in found:
            continue
        account = Account(row, ())
        boot, below = _taught(account, batch), min(map(_seq, batch.events))
        if boot is None and (left := account.unrepaired()):
            boot, _, upto = left[-1]
            below = upto + 1
        found[name] = None if boot is None else (*name, below, boot, REPAIRED_MAX)
    return [each for each in found.values() if each is not None]


def repair(state: State, account: Account, batch: EventBatch) -> None:
    """Remember the boots that a batch says the beginning of, and correct estimates that stand before it."""
    if not batch.events:
        return
    taught = _taught(account, batch)
    first = min(map(_seq, batch.events))
    for boot, epoch_ms in _learned(account, batch).items():
        if boot == taught:
            account.learn(boot, epoch_ms, first - 1)
        elif batch.sent is None or boot != batch.sent.boot_id:
            account.learn(boot, epoch_ms, 0)
    for boot, epoch_ms, upto in account.unrepaired():
        rows = state.facts.earlier.get((batch.device_id, batch.stream, upto + 1))
        if rows is not None:
            _correct(state, account, batch, rows, (boot, epoch_ms))


def _taught(account: Account, batch: EventBatch) -> str | None:
    """Return the boot of the batch's first event if the batch is the first to say when it began."""
    boot = min(batch.events, key=_seq).boot_id
    if boot is None or f'"{boot}"' in account.row.boots:
        return None
    return boot if boot in _learned(account, batch) else None


def _learned(account: Account, batch: EventBatch) -> dict[str, int]:
    known = account.known_boots()
    began = epochs(batch.events, batch.sent, batch.received_ms, known)
    return {boot: epoch_ms for boot, epoch_ms in began.items() if boot not in known}


def _correct(
    state: State, account: Account, batch: EventBatch, rows: Sequence[EarlierEvent], began: tuple[str, int]
) -> None:
    """Correct the estimates of one boot among `rows`, the newest first; remember where to go on."""
    boot, epoch_ms = began
    for row in rows:
        if row.boot_id != boot:
            account.learn(boot, epoch_ms, 0)
            return
        if row.quality == ESTIMATED and (best_ms := _best_ms(row, epoch_ms)) is not None:
            state.changes.repaired.append(Repaired(batch.device_id, batch.stream, row.seq, best_ms, CORRECTED))
            if row.seq == account.row.highest:
                account.row.best_ms = best_ms
    account.learn(boot, epoch_ms, rows[-1].seq - 1 if len(rows) == REPAIRED_MAX else 0)


def _best_ms(row: EarlierEvent, epoch_ms: int) -> int | None:
    """Return when it happened; None if its own values do not say."""
    if row.boottime_ms is None or row.boottime_ms > BOOTTIME_MAX_MS:
        return None
    try:
        occurred_ms = parse_ms(row.occurred_at)
        recorded_ms = None if row.recorded_at is None else parse_ms(row.recorded_at)
    except RuleError:  # stored by an earlier version, which took other texts
        return None
    return occurred(occurred_ms, recorded_ms, epoch_ms + row.boottime_ms, row.received_ms)
