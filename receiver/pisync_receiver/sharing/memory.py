"""What receivers remember together: never older than two seconds, and never older than a commit somebody was told of.

Every entry names the moment (by Redis's clock) before its query began, and the mark as it was at that moment. It is
believed for two seconds from that moment, however late Redis was told of it, and no longer than the mark stays the
same: whoever commits puts a new random mark in place, after the commit and before anybody hears of it. A receiver that
could not do so believes nothing for two seconds; the others may give what is up to two seconds old meanwhile.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pisync_receiver.caching import Kept, Question, Recalled
from pisync_receiver.directory import KEEP_S
from pisync_receiver.marks import Mark
from pisync_receiver.sharing.link import Link
from pisync_receiver.store import TokenRow

if TYPE_CHECKING:
    from redis.asyncio import Redis

_KEEP_MS: Final = round(KEEP_S * 1000)
_LARGEST: Final = 256 * 1024
"""Bytes of a body that is kept; of a larger one only the ETag is."""
_MARK_MS: Final = 86_400_000
"""How long a mark stays that nothing changes. One that is missing is made anew, and nothing from before is believed."""


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    mark: bytes
    asked_ms: int
    value: msgspec.Raw


_encode = msgspec.msgpack.Encoder().encode
_entry = msgspec.msgpack.Decoder(_Entry)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """When Redis was asked, by its own clock, and what the mark was then."""

    ms: int
    mark: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """What Redis knew: values as they were encoded, with their age in seconds. `moment` is None where it is away."""

    moment: Moment | None = None
    values: Mapping[bytes, tuple[msgspec.Raw, float]] = field(default_factory=dict)


class Memory:
    """Entries under one database's name. Used on the event loop; nothing here raises for want of Redis."""

    def __init__(self, link: Link, *, space: str, clock: Callable[[], float]) -> None:
        """`space` tells this database from any other that uses the same Redis."""
        self._link = link
        self._prefix = f"pisync:{space}:".encode()
        self._clock = clock
        self._believes_from = float("-inf")

    async def recall(self, mark: Mark, names: Sequence[bytes]) -> Remembered:
        """What may still be believed of `names`, all of which depend on `mark`."""
        found = await self._link.ask(lambda redis: self._read(redis, mark, names))
        if found is None or self._clock() < self._believes_from:
            return Remembered()
        (seconds, micros), (known, *texts) = found
        moment = Moment(ms=seconds * 1000 + micros // 1000, mark=known)
        values: dict[bytes, tuple[msgspec.Raw, float]] = {}
        for name, entry in zip(names, map(_decoded, texts), strict=True):
            if entry is not None and entry.mark == known and 0 <= (age := moment.ms - entry.asked_ms) < _KEEP_MS:
                values[name] = (entry.value, age / 1000)
        return Remembered(moment=moment, values=values)

    async def keep(self, moment: Moment | None, values: Mapping[bytes, object]) -> None:
        """Keep what a query found that began after `moment`."""
        if moment is None or not values:
            return

        async def write(redis: "Redis") -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                for name, value in values.items():
                    entry = _Entry(mark=moment.mark, asked_ms=moment.ms, value=msgspec.Raw(_encode(value)))
                    pipeline.set(self._prefix + name, _encode(entry), px=_KEEP_MS)
                await pipeline.execute()

        await self._link.ask(write)

    async def changed(self, marks: Collection[Mark]) -> None:
        """A commit changed these."""

        async def write(redis: "Redis") -> bool:
            async with redis.pipeline(transaction=False) as pipeline:
                for mark in marks:
                    pipeline.set(self._mark(mark), os.urandom(12), px=_MARK_MS)
                await pipeline.execute()
            return True

        if not await self._link.ask(write):
            self._believes_from = self._clock() + KEEP_S

    async def _read(self, redis: "Redis", mark: Mark, names: Sequence[bytes]) -> Any:
        async with redis.pipeline(transaction=False) as pipeline:
            pipeline.time()  # before the rest: an entry is taken for older, and never for younger, than it is
            pipeline.set(self._mark(mark), os.urandom(12), px=_MARK_MS, nx=True)
            pipeline.mget([self._mark(mark), *(self._prefix + name for name in names)])
            time, _, found = await pipeline.execute()
        return time, found

    def _mark(self, mark: Mark) -> bytes:
        return self._prefix + b"mark:" + mark.value.encode()


def _decoded(text: bytes | None) -> _Entry | None:
    try:
        return None if text is None else _entry.decode(text)
    except msgspec.MsgspecError:
        return None


class SharedCache:
    """`caching.Cache` for several receivers."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def recall(self, question: Question) -> Recalled:
        name = b"answer:" + question.key
        found = await self._memory.recall(question.mark, [name])
        value, _ = found.values.get(name, (None, 0.0))
        return Recalled(kept=None if value is None else _read(value, Kept), moment=found.moment)

    async def keep(self, question: Question, recalled: Recalled, kept: Kept) -> None:
        assert recalled.moment is None or isinstance(recalled.moment, Moment)
        if kept.body is not None and len(kept.body) > _LARGEST:
            kept = msgspec.structs.replace(kept, body=None)
        await self._memory.keep(recalled.moment, {b"answer:" + question.key: kept})

    async def changed(self, marks: Collection[Mark]) -> None:
        await self._memory.changed(marks)


class SharedTokens:
    """`directory.Elsewhere`: tokens that another receiver has just looked up."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def recall(self, hashes: Sequence[str]) -> "tuple[Moment | None, dict[str, tuple[TokenRow, float]]]":
        names = {b"token:" + digest.encode(): digest for digest in hashes}
        found = await self._memory.recall(Mark.TOKENS, list(names))
        rows = {names[name]: (_read(value, TokenRow), age) for name, (value, age) in found.values.items()}
        # A row under a name that is not its own opens nothing.
        return found.moment, {one: (row, age) for one, (row, age) in rows.items() if row and row.token_hash == one}

    async def keep(self, moment: object, rows: Sequence[TokenRow]) -> None:
        assert moment is None or isinstance(moment, Moment)
        await self._memory.keep(moment, {b"token:" + row.token_hash.encode(): row for row in rows})


def _read(value: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.MsgspecError:
        return None
