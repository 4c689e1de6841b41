"""What one transaction works on: devices and streams, read once, changed in memory, written at its end."""

from dataclasses import dataclass, field
from typing import Any

from pisync_receiver.health import Health
from pisync_receiver.store.writing.tables import Key, Tables


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

    key: Key
    """What names it in the engine's tables."""
    watermark: int = 0
    highest: int = 0
    stored: int = 0
    carried: int = 0
    rejected: int = 0
    conflicts: int = 0
    first_ms: int
    last_ms: int

    def row(self) -> tuple[Any, ...]:
        """For `put_stream`."""
        return (
            *self.key,
            self.watermark,
            self.highest,
            self.stored,
            self.carried,
            self.rejected,
            self.conflicts,
            self.first_ms,
            self.last_ms,
        )


class Group:
    """The submissions of one transaction. `finish` writes what is left before the commit."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._devices: dict[str, Device] = {}
        self._streams: dict[tuple[str, str], Stream] = {}

    def device(self, device_id: str) -> Device:
        """A device, whatever is known of it; written at the end, so ask only for one that there is or shall be."""
        if (device := self._devices.get(device_id)) is None:
            device = self._devices[device_id] = self._read_device(device_id)
        return device

    def stream(self, device_id: str, stream: str) -> Stream | None:
        """A stream, if anything of it ever arrived."""
        name = (device_id, stream)
        if (state := self._streams.get(name)) is None:
            row = self.tables.one("stream", *name)
            if row is None:
                return None
            number, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms = row
            state = self._streams[name] = Stream(
                key=self.tables.key(device_id, stream, number),
                watermark=watermark,
                highest=highest,
                stored=stored,
                carried=carried,
                rejected=rejected,
                conflicts=conflicts,
                first_ms=first_ms,
                last_ms=last_ms,
            )
        return state

    def stream_made(self, device_id: str, stream: str, now_ms: int) -> Stream:
        """A stream, made if need be."""
        if (state := self.stream(device_id, stream)) is None:
            key = self.tables.begin_stream(device_id, stream, now_ms)
            state = self._streams[device_id, stream] = Stream(key=key, first_ms=now_ms, last_ms=now_ms)
        return state

    def finish(self) -> None:
        """Write every device and stream that was touched."""
        self.tables.put("put_device", [device.row() for device in self._devices.values()])
        self.tables.put("put_stream", [stream.row() for stream in self._streams.values()])

    def _read_device(self, device_id: str) -> Device:
        row = self.tables.one("device", device_id)
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
