"""What one transaction works on: devices and streams, read once, changed in memory, written at its end."""

from dataclasses import dataclass, field
from typing import Any, Final

from pisync_receiver.health import Health
from pisync_receiver.store.sqlite.connection import Connection
from pisync_receiver.store.sqlite.queries import queries

HOUR_MS: Final = 3_600_000


@dataclass(kw_only=True, slots=True)
class Device:
    """One row of `devices`."""

    device_id: str
    exists: bool
    site: str | None = None
    agent: str | None = None
    enrolled_ms: int | None = None
    last_contact_ms: int | None = None
    last_refused_ms: int | None = None
    cloned_since_ms: int | None = None
    conflicts: int = 0
    health: Health = field(default_factory=Health)

    def contact(self, at_ms: int) -> None:
        """Something of it arrived, so it is known from now on."""
        self.exists = True
        self.last_contact_ms = max(at_ms, self.last_contact_ms or 0)

    def cloned(self, at_ms: int) -> None:
        """It was seen to be two."""
        if self.cloned_since_ms is None:
            self.cloned_since_ms = at_ms

    def row(self) -> tuple[Any, ...]:
        """For `put_device`."""
        health = self.health
        return (
            self.site,
            self.agent,
            self.enrolled_ms,
            self.last_contact_ms,
            self.last_refused_ms,
            self.cloned_since_ms,
            self.conflicts,
            health.consecutive_failures,
            health.total_failures,
            health.failing_since_ms,
            health.last_sync_ms,
            health.last_success_ms,
            health.last_failure_ms,
            health.last_errors,
            self.device_id,
        )


@dataclass(kw_only=True, slots=True)
class Stream:
    """One row of `streams`."""

    id: int
    watermark: int
    highest: int
    stored: int
    carried: int
    rejected: int
    conflicts: int
    first_ms: int
    last_ms: int

    def row(self) -> tuple[Any, ...]:
        """For `update_stream`."""
        return (
            self.watermark,
            self.highest,
            self.stored,
            self.carried,
            self.rejected,
            self.conflicts,
            self.last_ms,
            self.id,
        )


class Group:
    """The submissions of one transaction. `finish` writes what is left before the commit."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sql = queries("intake")
        self._devices: dict[str, Device] = {}
        self._streams: dict[tuple[str, str], Stream] = {}
        self._arrivals: dict[int, list[int]] = {}
        self._next_event: int | None = None
        self._next_sync_event: int | None = None

    def device(self, device_id: str) -> Device:
        """A device, whatever is known of it; written at the end, so ask only for one that there is or shall be."""
        if (device := self._devices.get(device_id)) is None:
            device = self._devices[device_id] = self._read_device(device_id)
        return device

    def stream(self, device_id: str, stream: str) -> Stream | None:
        """A stream, if anything of it ever arrived."""
        key = (device_id, stream)
        if (state := self._streams.get(key)) is None:
            row = self.connection.execute(self.sql["stream"], key).fetchone()
            if row is None:
                return None
            state = self._streams[key] = _stream(row)
        return state

    def stream_made(self, device_id: str, stream: str, now_ms: int) -> Stream:
        """A stream, made if need be."""
        if (state := self.stream(device_id, stream)) is None:
            self.connection.execute(self.sql["insert_stream"], (device_id, stream, now_ms, now_ms))
            state = self.stream(device_id, stream)
        assert state is not None
        return state

    def event_ids(self, count: int, received_ms: int) -> range:
        """Ids for so many events, which arrived then."""
        first = self._next_event
        if first is None:
            first = 1 + (self.connection.execute(self.sql["last_event"]).fetchone()[0] or 0)
        self._next_event = first + count
        ids = self._arrivals.setdefault(received_ms // HOUR_MS, [first, first])
        ids[1] = first + count - 1
        return range(first, first + count)

    def sync_event_id(self) -> int:
        """The id of one more sync event."""
        number = self._next_sync_event
        if number is None:
            number = 1 + (self.connection.execute(self.sql["last_sync_event"]).fetchone()[0] or 0)
        self._next_sync_event = number + 1
        return number

    def finish(self) -> None:
        """Write every device, stream and hour that was touched."""
        self.connection.executemany(self.sql["put_device"], [device.row() for device in self._devices.values()])
        self.connection.executemany(self.sql["update_stream"], [stream.row() for stream in self._streams.values()])
        arrivals = [(hour, *ids) for hour, ids in self._arrivals.items()]
        self.connection.executemany(self.sql["put_arrivals"], arrivals)

    def _read_device(self, device_id: str) -> Device:
        row = self.connection.execute(self.sql["device"], (device_id,)).fetchone()
        if row is None:
            return Device(device_id=device_id, exists=False)
        site, agent, enrolled, contact, refused, cloned, conflicts, *health = row
        return Device(
            device_id=device_id,
            exists=True,
            site=site,
            agent=agent,
            enrolled_ms=enrolled,
            last_contact_ms=contact,
            last_refused_ms=refused,
            cloned_since_ms=cloned,
            conflicts=conflicts,
            health=_health(health),
        )


def _health(row: list[Any]) -> Health:
    consecutive, total, since, sync, success, failure, errors = row
    return Health(
        consecutive_failures=consecutive,
        total_failures=total,
        failing_since_ms=since,
        last_sync_ms=sync,
        last_success_ms=success,
        last_failure_ms=failure,
        last_errors=errors,
    )


def _stream(row: tuple[Any, ...]) -> Stream:
    number, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms = row
    return Stream(
        id=number,
        watermark=watermark,
        highest=highest,
        stored=stored,
        carried=carried,
        rejected=rejected,
        conflicts=conflicts,
        first_ms=first_ms,
        last_ms=last_ms,
    )
