"""Which events of other outboxes were adopted, noted in the commit that adopts them: each is adopted once.

A note for each source has the seqs that were taken from it, as ranges. Its name is that of the source, and not of the
stream alone: two copies of one card have one stream and different events under the same seqs.
"""

import json
from typing import Final

from pisync_agent.errors import InvalidEvent
from pisync_agent.outbox.database import BrokenOutbox, integer, queries, text
from pisync_agent.outbox.numbers import Numbers
from pisync_common.models import Origin
from pisync_common.sqlite import Connection

ADOPTED_BEFORE: Final = 0
"""The result of an event that was adopted before, in place of its seq."""
SOURCES_MAX: Final = 1_000
RANGES_MAX: Final = 10_000
"""Bounds of what is noted: any app may send such events, and notes are never deleted."""

_PREFIX: Final = "adopted:"
_END: Final = "adopted;"


class Adopted:
    """The notes within one transaction: `add`, then `save`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sources: dict[str, Numbers] = {}

    def add(self, place: Origin) -> bool:
        """Note an event; return whether it is new. Raises InvalidEvent beyond the bounds."""
        numbers = self._sources.get(place.stream)
        if numbers is None:
            numbers = self._sources[place.stream] = self._load(place.stream)
        if place.seq in numbers:
            return False
        if len(numbers.ranges) >= RANGES_MAX and place.seq - 1 not in numbers:
            raise InvalidEvent(f"more than {RANGES_MAX:,} gaps between the adopted events of {place.stream}")
        numbers.add(place.seq)
        return True

    def save(self) -> None:
        for source, numbers in self._sources.items():
            self._connection.execute(queries()["set_note"], (_PREFIX + source, json.dumps(numbers.ranges)))

    def _load(self, source: str) -> Numbers:
        row = self._connection.execute(queries()["note"], (_PREFIX + source,)).fetchone()
        if row is not None:
            return _numbers(text(row[0]))
        noted = integer(self._connection.execute(queries()["count_notes"], (_PREFIX, _END)).fetchone()[0])
        if noted + len(self._sources) >= SOURCES_MAX:
            raise InvalidEvent(f"{SOURCES_MAX:,} outboxes were adopted into this one, the most there may be")
        return Numbers()


def _numbers(note: str) -> Numbers:
    try:
        return Numbers((integer(first), integer(last)) for first, last in json.loads(note))
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenOutbox("a note of adopted events cannot be read") from error
