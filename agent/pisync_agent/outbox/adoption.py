"""Another outbox to adopt: an old card's, a user's private one, a file that was set aside, a copy; broken or not.

It is read page by page, with its log, and never written: `recovery.contents` reads it, as in a salvage. So a card that
is mounted read-only needs no copy. What was not delivered is adopted, with its own times, ids and origin; `adopted`
notes what was taken. Delivered events are known to the receiver, under the device that delivered them.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pisync_agent.errors import InvalidEvent, StoreUnusable
from pisync_agent.outbox.database import migrations
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.numbers import Numbers
from pisync_agent.outbox.recovery.contents import UNKNOWN, event_of, events, read_pages
from pisync_agent.outbox.recovery.sqlite_pages import Pages, Version
from pisync_common.errors import RuleError
from pisync_common.models import Origin
from pisync_common.rules import check_id

DAMAGED: Final = "its text is not what was recorded"

_STREAM_CHARS: Final = 100
_USER_VERSION: Final = slice(60, 64)


class Source:
    """The database file at `path`, and the device that it is from if that is another. Close it.

    Raises OSError; StoreUnusable for what is no outbox, or of a newer version.
    """

    def __init__(self, path: Path, device_id: str | None = None) -> None:
        self._device_id = device_id
        self._pages = Pages(path)
        try:
            version = int.from_bytes(self._pages.page(1)[_USER_VERSION], "big")
            self._contents = read_pages(self._pages)
            self._check(path, version)
        except BaseException:
            self._pages.close()
            raise
        newest = self._newest_text()
        self.stream = self._stream(newest)
        self.name = f"{self.stream[:_STREAM_CHARS]}:{_digest(newest)}"
        """Identifies what is adopted: copies of one card with different events have different names."""
        self.missing = 0
        """Undelivered events that nothing of can be read, known once `events` has ended."""

    @property
    def delivered(self) -> int:
        """Events 1 to this number were delivered; 0 where that cannot be read."""
        state = self._contents.state
        return 0 if state is None else state.delivered

    @property
    def whole(self) -> bool:
        """Whether the file and its log are complete, as far as they tell."""
        return self._contents.whole and self._contents.state is not None

    def dead_letters(self) -> dict[str, int]:
        """Count the dead letters that are left behind, by their code."""
        here = self._contents.stream
        return dict(
            Counter(
                code
                for stream, _, code, _, _, requeued_as, _ in self._contents.dead.values()
                if requeued_as is None and (code != "conflict" or stream != here)
            )
        )

    def count(self, *, everything: bool) -> int:
        """Return how many events there are to adopt, at most."""
        return self._contents.intact.count_above(0 if everything else self.delivered) + len(self._conflicts())

    def events(self, *, everything: bool) -> Iterator[tuple[int, NewEvent | InvalidEvent]]:
        """Yield (seq, event) of what was not delivered, and of delivered events too if `everything`.

        An event in conflict with another is among them, as the receiver has only the other one.
        """
        for seq, body in sorted(self._conflicts().items()):
            yield seq, self._event(seq, body)
        contents, seen = self._contents, Numbers()
        dead = {seq for stream, seq in contents.dead if stream == contents.stream}
        for found in events(self._pages, contents):
            if (found.seq <= self.delivered and not everything) or found.seq in dead or found.seq in seen:
                continue
            seen.add(found.seq)
            yield found.seq, self._event(found.seq, found.body) if found.intact else InvalidEvent(DAMAGED)
        self.missing = self._missing(seen, dead)

    def close(self) -> None:
        self._pages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, path: Path, version: int) -> None:
        if self._contents.state is None and not self._contents.leaves:
            raise StoreUnusable(f"{path} holds nothing of an outbox that can be read; nothing was changed.")
        if version > max(migrations()):
            raise StoreUnusable(
                f"{path} has schema version {version}, written by a newer PiSync; this version supports "
                f"{max(migrations())}. Install the newer PiSync; nothing was changed."
            )

    def _missing(self, seen: Numbers, dead: set[int]) -> int:
        """Return how many numbers lack an event between the newest that was delivered and the newest of all."""
        first, last = self.delivered, seen.highest
        if last is None or self._contents.state is None:
            return 0  # how many there were is unknown: the file is not `whole`
        return max(0, last - first - seen.count_above(first) - sum(first < seq < last for seq in dead))

    def _event(self, seq: int, body: str) -> NewEvent | InvalidEvent:
        try:
            return NewEvent.from_body(
                body,
                origin=Origin(stream=self.stream, seq=seq, device_id=self._device_id),
                adopted_from=Origin(stream=self.name, seq=seq),
            )
        except InvalidEvent as error:
            return error

    def _conflicts(self) -> dict[int, str]:
        """Return the texts of events in conflict by their seq."""
        return {
            seq: body
            for stream, seq, code, _, body, requeued_as, _ in self._contents.dead.values()
            if stream == self._contents.stream and code == "conflict" and requeued_as is None
        }

    def _stream(self, newest: str) -> str:
        """Return the stream's name; one made from the newest event where the name is lost."""
        stream = self._contents.stream
        try:
            return check_id("stream", stream) if stream != UNKNOWN else f"{UNKNOWN}-{_digest(newest)}"
        except RuleError:
            return f"{UNKNOWN}-{_digest(newest)}"

    def _newest_text(self) -> str:
        newest = self._contents.intact.highest
        for _, page in reversed(self._contents.leaves):
            rows = self._pages.other_rows(page) if isinstance(page, Version) else self._pages.rows(page)
            for row in rows:
                found = event_of(row)
                if found is not None and found.intact and found.seq == newest:
                    return found.body
        return ""


def _digest(text: str) -> str:
    from hashlib import blake2b  # loads OpenSSL, and only adopting needs it

    return blake2b(text.encode(), digest_size=8).hexdigest()
