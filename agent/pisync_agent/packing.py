"""Batches made ready to go: read from the outbox, joined and compressed while the one before is on the wire."""

import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pisync_agent.policy import BatchSize
from pisync_common.limits import BODY_BYTES
from pisync_common.models import Stamp
from pisync_common.wire import close_batch, open_batch

if TYPE_CHECKING:
    from zlib import _Compress

_LEVEL: Final = 6
_GZIP: Final = 31
"""zlib's name for 32 KiB of window and gzip's head and tail."""
_MEMORY: Final = 9
_END_BYTES: Final = 1024
"""More than what a batch's end adds to its compressed body."""


class Readable(Protocol):
    """As much of the outbox as a packer needs."""

    def read(
        self, after: int, *, max_events: int, max_bytes: int, stream: str | None = None
    ) -> list[tuple[int, str]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive events, compressed but for the end: that holds the time of sending."""

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
        """The body as it is sent. Works once: another attempt is another batch, with its own time."""
        return self.start + self.rest.compress(close_batch(sent).encode()) + self.rest.flush()


class Packer:
    """Makes batches of one stream."""

    def __init__(self, outbox: Readable, *, device_id: str, stream: str, agent: str) -> None:
        self._outbox = outbox
        self._opening = open_batch(device_id=device_id, stream=stream, agent=agent)
        self.stream = stream

    def pack(self, after: int, *, max_events: int, max_bytes: int) -> Batch | None:
        """The batch that follows event `after`; None if nothing does. Its body keeps to BODY_BYTES."""
        rows = self._outbox.read(after, max_events=max_events, max_bytes=max_bytes, stream=self.stream)
        while rows:
            batch = self.of(rows)
            if len(batch.start) <= BODY_BYTES - _END_BYTES or len(rows) == 1:
                return batch
            rows = rows[: len(rows) // 2]
        return None

    def of(self, rows: list[tuple[int, str]]) -> Batch:
        """A batch of these events; of none it is a probe."""
        events = ",".join(text for _, text in rows)
        rest = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP, _MEMORY)
        plain = f"{self._opening}{events}".encode()
        return Batch(
            stream=self.stream,
            seqs=[seq for seq, _ in rows],
            size=len(plain) - len(self._opening),
            # Flushed, so that its length is known; the end then costs some 20 bytes more.
            start=rest.compress(plain) + rest.flush(zlib.Z_SYNC_FLUSH),
            rest=rest,
        )


class Ahead:
    """Keeps one batch ready. Not thread-safe; close it."""

    def __init__(self, packer: Packer, size: BatchSize) -> None:
        self._packer = packer
        self._size = size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pack")
        self._ready: tuple[int, Future[Batch | None]] | None = None

    def prepare(self, after: int) -> None:
        """Begin to pack the batch that follows event `after`."""
        self._ready = (after, self._pool.submit(self._pack, after))

    def take(self, after: int) -> Batch | None:
        """The batch that follows event `after`, within the size of now; None if there is none."""
        ready, self._ready = self._ready, None
        if ready is not None:
            batch = ready[1].result()
            if ready[0] == after and batch is not None and self._fits(batch):
                return batch
        return self._pack(after)

    def close(self) -> None:
        self._pool.shutdown()

    def _pack(self, after: int) -> Batch | None:
        return self._packer.pack(after, max_events=self._size.events, max_bytes=self._size.bytes)

    def _fits(self, batch: Batch) -> bool:
        return len(batch.seqs) == 1 or (len(batch.seqs) <= self._size.events and batch.size <= self._size.bytes)
