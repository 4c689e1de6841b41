"""What is known of deliveries and not yet in the file: a crash may forget it, and then events are sent again."""

import dataclasses
from dataclasses import dataclass, field

from pisync_agent.outbox import event_rows, pointers
from pisync_agent.outbox.database import queries
from pisync_agent.outbox.pointers import Pointers
from pisync_common.models import Rejection
from pisync_common.sqlite import Connection


@dataclass(kw_only=True, slots=True)
class Unsaved:
    """Pointers and rejections of one stream, and notes."""

    pointers: Pointers | None = None
    rejections: list[Rejection] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        return self.pointers is not None or bool(self.notes)

    def over(self, stored: Pointers) -> Pointers:
        """Return the pointers in force; forget those of a stream that has ended."""
        if self.pointers is None or self.pointers.stream != stored.stream:
            self.pointers, self.rejections = None, []
            return stored
        return dataclasses.replace(stored, delivered=self.pointers.delivered, watermark=self.pointers.watermark)

    def write(self, connection: Connection, now: Pointers) -> None:
        """Write everything, within the caller's transaction; `clear` follows its commit."""
        for rejection in self.rejections:
            event_rows.move_to_dead_letters(
                connection, now.stream, rejection.seq, rejection.code, rejection.detail, local=False
            )
        if self.pointers is not None:
            pointers.save(connection, now)
        connection.executemany(queries()["set_note"], self.notes.items())

    def clear(self) -> None:
        self.pointers, self.rejections, self.notes = None, [], {}
