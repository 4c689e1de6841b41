"""How a receipt moves the delivered pointer.

Terms: `delivered` is the device's pointer (events 1 to it need not be sent again, as far as it knows), `sent` the
batch, `held` the events the device still has, `watermark` the receiver's.

1. **Forward.** The receipt accounts for every event of the batch. So if the batch continues what was delivered
   (it starts at or before delivered + 1), delivered becomes the batch's last event, unless it is further already.
   The receiver's watermark alone never moves it forward: a clone of this card may have delivered other events.
2. **Missing.** If the watermark is below delivered, the receiver misses something that was delivered once: it was
   restored from an older copy, or lost something. It misses what `missing` names; if it names nothing, all from the
   watermark + 1. Dead letters made by the device itself are not missing: the receiver never got them.
3. **Back.** delivered goes back to just before the lowest event that is missing and held. All after it is sent
   again; what the receiver has is a duplicate to it. Events that are missing and no longer held move nothing.
4. **Probe.** An empty batch (a probe) carries no seq, so the receiver can name only gaps below the highest seq it
   knows. If none of those is held, delivered goes back by one event: the receipt for it names all the rest.
5. **A full list.** If `missing` is as long as a receipt may be and nothing in it is held, gaps beyond it are
   unknown: delivered goes back to the oldest held event, but only if the watermark has just fallen.
6. **A bound.** In one sync run delivered goes back to the same event only once, and REWINDS times in all. So a
   receiver that lies, or that cannot store what it asks for, costs a bounded number of events a run, and the
   next run may ask again.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pisync_common.limits import RECEIPT_RANGES
from pisync_common.models import Receipt

REWINDS: Final = 8
"""How often delivered may go back in one sync run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What the device has: events `first` to `last`, some of which it made dead letters itself."""

    first: int
    last: int
    dead: Container[int] = ()


def advance(delivered: int, sent: Sequence[int]) -> int:
    """Apply rule 1."""
    continues = bool(sent) and sent[0] <= delivered + 1
    return max(delivered, sent[-1]) if continues else delivered


def missing(delivered: int, watermark_before: int, sent: Sequence[int], receipt: Receipt, held: Held) -> int | None:
    """Apply rules 2 to 5: return the event to go back to, if any. `delivered` has been advanced already."""
    if receipt.watermark >= delivered:
        return None
    ranges = receipt.missing or ((receipt.watermark + 1, delivered),)
    lowest = _lowest_held(ranges, delivered, held)
    if lowest is not None or delivered < held.first:
        return lowest
    if not sent:
        return delivered
    full_list = len(receipt.missing) >= RECEIPT_RANGES and receipt.missing[-1][1] < held.first
    return held.first if full_list and receipt.watermark < watermark_before else None


def settled(
    delivered: int,
    watermark_before: int,
    sent: Sequence[int],
    receipt: Receipt,
    held: Held,
    may_go_back: Callable[[int], bool],
) -> int:
    """Return the delivered pointer after `receipt`; `may_go_back` is asked at most once, with the event (rule 6)."""
    forward = advance(delivered, sent)
    back_to = missing(forward, watermark_before, sent, receipt, held)
    return forward if back_to is None or not may_go_back(back_to) else back_to - 1


class Rewinds:
    """Rule 6: how often delivered went back in this sync run."""

    def __init__(self) -> None:
        self._targets: set[int] = set()

    def begin_run(self) -> None:
        self._targets.clear()

    def allow(self, seq: int) -> bool:
        """Return whether delivered may go back to `seq`; if so, count it."""
        if seq in self._targets or len(self._targets) >= REWINDS:
            return False
        self._targets.add(seq)
        return True


def _lowest_held(ranges: Iterable[tuple[int, int]], delivered: int, held: Held) -> int | None:
    for first, last in sorted(ranges):
        for seq in range(max(first, held.first), min(last, held.last, delivered) + 1):
            if seq not in held.dead:
                return seq
    return None
