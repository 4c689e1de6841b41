"""Batches: how large they are, and how they are read, joined and compressed while the previous one is in flight."""

import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pisync_common.limits import BATCH_EVENTS, BODY_BYTES, KIB, MIB
from pisync_common.models import Stamp
from pisync_common.wire import close_batch, open_batch

if TYPE_CHECKING:
    from zlib import _Compress

FIRST_BYTES: Final = 64 * KIB
MOST_BYTES: Final = 2 * MIB
"""A batch's events before compression. More would need more memory and save no bytes on the wire."""
LEAST_BYTES: Final = 4 * KIB
"""A slow link alone makes no batch smaller than this: below it, the round trip takes most of the time."""
CAREFUL: Final = 8
"""Batches that must succeed after a failure before a larger one is tried: what failed may well fail again."""
AIM_S: Final = 10.0
"""About how long a request should take: an interruption costs no more than that."""
FIRST_AIM_S: Final = 3.0
"""The same on a link that was interrupted, until it has held for a while: it may be gone again soon."""
RETURN_S: Final = 1.0
"""The same for the first request after an interruption: what gets through at once is safe."""
HELD: Final = 8
"""A request aims at this fraction of the time for which the link has held, within these two."""
PARALLEL: Final = 2
"""How many batches are in flight on a slow link: while the first is answered, the second keeps the line busy."""
SLOW_S: Final = 0.5
LONG_S: Final = 1.5
"""Two are in flight where a batch takes between these, alone: less is quick enough, and a batch that takes more keeps
the line busy for long against the wait for its receipt, while two would be lost with the link."""
STEADY_S: Final = 30.0
"""For so long must a link have held after an interruption before two batches are risked at once."""

_LEVEL: Final = 6
_GZIP: Final = 31
"""zlib's number for a window of 32 KiB with gzip's header and trailer."""
_MEMORY: Final = 9
_END_BYTES: Final = 1024
"""More than a batch's end adds to its compressed body."""


class BatchSize:
    """How much goes into one request: it follows the link, so that a request takes about as long as it should."""

    def __init__(self, *, first: int = FIRST_BYTES, most: int = MOST_BYTES) -> None:
        self._most = most
        self.bytes = min(first, most)
        """Bytes of events before compression that the next batch may have."""
        self.events = BATCH_EVENTS
        """Events that the next batch may have."""
        self.parallel = 1
        """Batches that may be in flight at once."""
        self._careful = 0
        self._held = 0.0
        self._interrupted = False
        self._rate = 0.0

    def succeeded(self, *, events: int, bytes: int, seconds: float) -> None:
        """Grow or shrink towards the aim after a batch that took `seconds`, at most twofold."""
        seconds = max(seconds, 0.001)
        self._held += seconds
        self._rate = bytes / seconds
        steady = not self._interrupted or self._held >= STEADY_S
        alone = seconds / self.parallel  # two share the line
        self.parallel = PARALLEL if steady and seconds >= SLOW_S and alone <= LONG_S else 1
        aim = min(AIM_S, max(FIRST_AIM_S, self._held / HELD))
        factor = min(2.0, max(0.5, aim / seconds))
        if factor > 1.0:
            if bytes * 2 >= self.bytes or events >= self.events:  # large enough to tell something about larger batches
                self._grow(factor)
        else:
            self.bytes = min(self.bytes, max(LEAST_BYTES, int(bytes * factor)))

    def failed(self, *, events: int, bytes: int) -> None:
        """Halve the size, down to one event, after a batch that was too large or took too long."""
        self.events = max(1, events // 2)
        self.bytes = max(1, min(self.bytes, bytes) // 2)
        self.parallel = 1
        self._careful = CAREFUL

    def interrupted(self) -> None:
        """Begin with short requests again after the link was gone, at the pace known from before."""
        self._held, self._interrupted, self.parallel = 0.0, True, 1
        if self._rate:
            self.bytes = min(self.bytes, max(LEAST_BYTES, int(self._rate * RETURN_S)))

    def _grow(self, factor: float) -> None:
        if self._careful:
            self._careful -= 1
            return
        self.bytes = min(self._most, int(self.bytes * factor))
        self.events = min(BATCH_EVENTS, max(self.events + 1, int(self.events * factor)))


class Readable(Protocol):
    """As much of the outbox as a packer needs."""

    def read(
        self, after: int, *, max_events: int, max_bytes: int, stream: str | None = None
    ) -> list[tuple[int, str]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive events, compressed except for the end, which contains the time of sending."""

    stream: str
    seqs: list[int]
    size: int
    """Bytes of its events before compression."""
    start: bytes
    rest: "_Compress"

    @property
    def last(self) -> int:
        return self.seqs[-1]

    def sealed(self, sent: Stamp) -> bytes:
        """Return the body as it is sent. Works once: another attempt is another batch, with its own time."""
        return self.start + self.rest.compress(close_batch(sent).encode()) + self.rest.flush()


class Packer:
    """Makes batches of one stream."""

    def __init__(self, outbox: Readable, *, device_id: str, stream: str, agent: str) -> None:
        self._outbox = outbox
        self._opening = open_batch(device_id=device_id, stream=stream, agent=agent)
        self.stream = stream

    def pack(self, after: int, *, max_events: int, max_bytes: int, before: int | None = None) -> Batch | None:
        """Return the batch that follows event `after`, up to `before`; None if nothing does. It keeps to BODY_BYTES."""
        rows = self._outbox.read(after, max_events=max_events, max_bytes=max_bytes, stream=self.stream)
        if before is not None:
            rows = [row for row in rows if row[0] < before]
        while rows:
            batch = self.of(rows)
            if len(batch.start) <= BODY_BYTES - _END_BYTES or len(rows) == 1:
                return batch
            rows = rows[: len(rows) // 2]
        return None

    def of(self, rows: list[tuple[int, str]]) -> Batch:
        """Return a batch of these events; without events it is a probe."""
        events = ",".join(text for _, text in rows)
        rest = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP, _MEMORY)
        plain = f"{self._opening}{events}".encode()
        return Batch(
            stream=self.stream,
            seqs=[seq for seq, _ in rows],
            size=len(plain) - len(self._opening),
            # Flushed, so that its length is known; the end then costs about 20 bytes more.
            start=rest.compress(plain) + rest.flush(zlib.Z_SYNC_FLUSH),
            rest=rest,
        )


class Prefetcher:
    """Packs the next batch while the current one is in flight. Not thread-safe; close it."""

    def __init__(self, packer: Packer, size: BatchSize) -> None:
        self._packer = packer
        self._size = size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pack")
        self._ready: tuple[int, Future[Batch | None]] | None = None

    def prepare(self, after: int) -> None:
        """Begin to pack the batch that follows event `after`."""
        self._ready = (after, self._pool.submit(self._pack, after))

    def take(self, after: int, *, before: int | None = None) -> Batch | None:
        """Return the batch that follows event `after`, within the present size and before event `before`, or None."""
        ready, self._ready = self._ready, None
        if ready is not None:
            batch = ready[1].result()
            if ready[0] == after and batch is not None and self._fits(batch, before):
                return batch
        return self._pack(after, before)

    def close(self) -> None:
        self._pool.shutdown()

    def _pack(self, after: int, before: int | None = None) -> Batch | None:
        return self._packer.pack(after, max_events=self._size.events, max_bytes=self._size.bytes, before=before)

    def _fits(self, batch: Batch, before: int | None) -> bool:
        if before is not None and batch.last >= before:
            return False
        return len(batch.seqs) == 1 or (len(batch.seqs) <= self._size.events and batch.size <= self._size.bytes)
