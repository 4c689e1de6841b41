"""Tokens that several receivers share: looked up in the store, remembered for a moment.

Look-ups are made together: whatever is asked for while one query runs is the next query. What was found is believed for
two seconds, counted from before its query began, so a token that was revoked anywhere ends everywhere within that time;
a query that itself took so long says nothing any more. What this receiver itself makes or revokes it knows at once, and
no query that began earlier brings the old state back.
"""

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from pisync_receiver.auth import token_hash
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import TokenRow

KEEP_S: Final = 2.0
PATIENCE_S: Final = 10.0
"""How long a call waits for its token to be looked up before it is answered 503."""
SIZE: Final = 50_000
"""Tokens remembered; 20 MB of them."""
AT_ONCE: Final = 1_000

LookUp = Callable[[Sequence[str]], list[TokenRow]]
"""`Reader.tokens_by_hash`; called in a thread of its own, as slow questions may fill the threads that all share."""


class Elsewhere(Protocol):
    """Where receivers leave each other what they looked up."""

    async def recall(self, hashes: Sequence[str]) -> tuple[object, dict[str, tuple[TokenRow, float]]]:
        """What may be believed still, each with the seconds since before its query began; and the moment, for `keep`.
        Never raises."""

    async def keep(self, moment: object, rows: Sequence[TokenRow]) -> None:
        """Leave what a query found that began after `moment`. Never raises."""


class Directory:
    """`auth.TokenSource` for a store that other receivers write, too. Used on the event loop."""

    def __init__(
        self,
        look_up: LookUp,
        *,
        clock: Callable[[], float],
        elsewhere: Elsewhere | None = None,
        size: int = SIZE,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`clock` counts seconds and never goes back. `elsewhere` is asked before the store, which has `patience_s` to
        answer."""
        self._patience_s = patience_s
        self._elsewhere = elsewhere
        self._look_up = look_up
        self._clock = clock
        self._size = size
        self._remembered: OrderedDict[str, tuple[TokenRow, float]] = OrderedDict()
        self._wanted: dict[str, asyncio.Future[TokenRow | None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._changed: dict[str, TokenRow] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pisync-tokens")

    def put(self, row: TokenRow) -> None:
        """A token was made or changed by this receiver."""
        self._changed[row.token_hash] = row
        self._remember(row, self._clock())

    async def look_up(self, secret: str) -> TokenRow | None:
        """The token's row, ended or not; None for a token nobody made. Raises StoreUnusable."""
        digest = token_hash(secret)
        row = self._fresh(digest)
        if row is None:
            row = await asyncio.shield(self._ask(digest))
        return row if row is not None and hmac.compare_digest(row.token_hash, digest) else None

    def _fresh(self, digest: str) -> TokenRow | None:
        known = self._remembered.get(digest)
        return known[0] if known is not None and self._clock() < known[1] + KEEP_S else None

    def _ask(self, digest: str) -> "asyncio.Future[TokenRow | None]":
        """The answer of the next query, which this look-up is part of."""
        loop = asyncio.get_running_loop()
        answer = self._wanted.get(digest)
        if answer is None:
            answer = self._wanted[digest] = loop.create_future()
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask_for_all())
        return answer

    async def _ask_for_all(self) -> None:
        while self._wanted:
            digests = list(self._wanted)[:AT_ONCE]
            wanted = {digest: self._wanted.pop(digest) for digest in digests}
            try:
                found = await self._query(digests)
            except Exception as error:
                _fail(wanted.values(), error)
                continue
            for digest, answer in wanted.items():
                if not answer.done():
                    answer.set_result(found.get(digest))

    async def _query(self, digests: Sequence[str]) -> dict[str, TokenRow]:
        """The tokens of some hashes. Raises StoreUnusable, also where the answer is too old when it comes."""
        self._changed.clear()
        began = self._clock()
        found = await self._find(digests)
        if self._clock() >= began + KEEP_S:
            raise StoreUnusable(f"a look-up of tokens took over {KEEP_S:g} s, so its answer is not believed")
        for row, age in found.values():
            self._remember(row, began - age)
        return {digest: row for digest, (row, _) in found.items()} | self._changed

    async def _find(self, digests: Sequence[str]) -> dict[str, tuple[TokenRow, float]]:
        """Rows by their hash, each with the age it had already."""
        if self._elsewhere is None:
            return {row.token_hash: (row, 0.0) for row in await self._ask_store(digests)}
        moment, found = await self._elsewhere.recall(digests)
        if missing := [digest for digest in digests if digest not in found]:
            rows = await self._ask_store(missing)
            await self._elsewhere.keep(moment, rows)
            found |= {row.token_hash: (row, 0.0) for row in rows}
        return found

    async def _ask_store(self, digests: Sequence[str]) -> list[TokenRow]:
        asking = asyncio.get_running_loop().run_in_executor(self._thread, self._look_up, digests)
        try:
            return await asyncio.wait_for(asking, self._patience_s)
        except TimeoutError:
            raise StoreUnusable(f"tokens could not be looked up within {self._patience_s:g} s") from None

    def _remember(self, row: TokenRow, since: float) -> None:
        known = self._remembered.get(row.token_hash)
        if known is not None and known[1] > since:
            return
        self._remembered[row.token_hash] = (row, since)
        self._remembered.move_to_end(row.token_hash)
        if len(self._remembered) > self._size:
            self._remembered.popitem(last=False)


def _fail(answers: "Iterable[asyncio.Future[TokenRow | None]]", error: Exception) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)
            answer.exception()  # whoever waits may be gone; then nobody has to hear of it
