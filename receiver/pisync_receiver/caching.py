"""Answers that still hold: a question names what its answer depends on, and every commit tells what it changed.

A cache is told of a commit before anybody hears of it, so nobody who wrote is shown what was before. For how long it
believes what it keeps is its own affair: `OwnCache` is for the one process that writes a database, `sharing` for
several.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from pisync_receiver.marks import Mark, marks_of

SIZE: Final = 10_000
"""Answers one process knows the ETag of; 5 MB of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One GET: the same key, the same answer, whoever asks."""

    key: bytes
    mark: Mark
    moves: bool
    """Whether the answer changes as time goes by, without any commit."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of an answer with status 200."""

    etag: bytes
    content_type: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None
    """None where only the ETag is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalled:
    """What a cache knew. `moment` is for its own `keep`."""

    kept: Kept | None = None
    moment: object = None


class Cache(Protocol):
    """Never gives an answer that is older than a commit somebody was told of. Used on the event loop."""

    async def recall(self, question: Question) -> Recalled:
        """What is known of the answer. Never raises."""

    async def keep(self, question: Question, recalled: Recalled, kept: Kept) -> None:
        """Keep what a query found that began after `recalled`. Never raises."""

    async def changed(self, marks: Collection[Mark]) -> None:
        """A commit changed these; nobody has heard of it yet. Never raises."""


def telling(cache: Cache | None) -> Callable[[Sequence[object]], Awaitable[None]] | None:
    """What an intake calls with the outcomes of every commit."""
    return None if cache is None else lambda outcomes: cache.changed(marks_of(outcomes))


class OwnCache:
    """For the one process that writes a database: what it keeps holds until the next commit that touches it.

    Bodies are not kept: the database gives them faster than they are worth in memory.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._now = {mark: object() for mark in Mark}
        self._kept: OrderedDict[bytes, tuple[object, Kept]] = OrderedDict()

    async def recall(self, question: Question) -> Recalled:
        now = self._now[question.mark]
        at, kept = self._kept.get(question.key, (None, None))
        return Recalled(kept=kept if at is now else None, moment=now)

    async def keep(self, question: Question, recalled: Recalled, kept: Kept) -> None:
        if question.moves:
            return
        self._kept[question.key] = (recalled.moment, msgspec.structs.replace(kept, body=None))
        self._kept.move_to_end(question.key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    async def changed(self, marks: Collection[Mark]) -> None:
        for mark in marks:
            self._now[mark] = object()
