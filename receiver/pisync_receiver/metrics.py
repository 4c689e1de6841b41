"""The metrics that Prometheus reads. One object an app, on the registry it was given."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pisync_receiver.domain.fleet import STATES, Criteria, Fleet
from pisync_receiver.errors import DatabaseLost, StoreUnusable
from pisync_receiver.store import Store

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_GROUP_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


SITES_SHOWN: Final = 200
"""Sites with devices in trouble that have metrics of their own, of which Prometheus keeps every series."""


class Metrics:
    """Counters and histograms of the receiver; also the intake's watcher."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "pisync_requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        events = Counter("pisync_events", "Progress events in answered batches.", ("outcome",), registry=registry)
        self._stored = events.labels("stored")
        self._duplicates = events.labels("duplicate")
        self._rejected = events.labels("rejected")
        self.sync_events = Counter("pisync_sync_events", "Sync events answered with 201.", registry=registry)
        self._group_size = Histogram(
            "pisync_intake_group_size", "Submissions in one commit.", registry=registry, buckets=_GROUP_SIZES
        )
        self._wait = Histogram(
            "pisync_intake_wait_seconds",
            "From a group's first submission to its commit.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._writing = Histogram(
            "pisync_intake_commit_seconds",
            "What the database took to write a group and commit it.",
            registry=registry,
            buckets=_SECONDS,
        )
        refusals = Counter("pisync_intake_refusals", "Submissions answered 503.", ("reason",), registry=registry)
        self._refusals = {reason: refusals.labels(reason) for reason in ("stopping", "waiting", "bytes", "time")}
        self._devices = Gauge("pisync_devices", "Devices by how they are doing.", ("health",), registry=registry)
        self._devices_incomplete = Gauge(
            "pisync_devices_incomplete",
            "Devices of which something is missing, was rejected or conflicts.",
            registry=registry,
        )
        self._devices_cloned = Gauge(
            "pisync_devices_cloned", "Devices whose identity two devices have used.", registry=registry
        )
        self._sites_in_need = Gauge(
            "pisync_sites_in_need", "Sites that fail or are silent as a whole.", registry=registry
        )
        self._site_devices = Gauge(
            "pisync_site_devices",
            "Devices by how they are doing, of the sites in most need.",
            ("site", "health"),
            registry=registry,
        )
        self._streams_behind = Gauge("pisync_streams_behind", "Streams that are missing an event.", registry=registry)
        self._events_missing = Gauge(
            "pisync_watermark_lag_events",
            "How far watermarks are behind the highest seq seen, summed.",
            registry=registry,
        )
        self._connections = Gauge(
            "pisync_database_connections",
            "Connections to the database server.",
            ("pool", "state"),
            registry=registry,
        )

    def request(self, route: str, method: str, status: int) -> None:
        """One request was answered. `route` is the path's template, or a fixed text where none matched."""
        key = (route, method, status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(route, method, str(status))
        child.inc()

    def receipt(self, stored: int, duplicates: int, rejected: int) -> None:
        """One batch was answered."""
        self._stored.inc(stored)
        self._duplicates.inc(duplicates)
        self._rejected.inc(rejected)

    def group(self, size: int, waited: float, writing: float) -> None:
        self._group_size.observe(size)
        self._wait.observe(waited)
        self._writing.observe(writing)

    def refused(self, reason: str) -> None:
        self._refusals[reason].inc()

    def fleet(self, fleet: Fleet) -> None:
        """Show a count of the fleet."""
        for state in STATES:
            self._devices.labels(state).set(getattr(fleet.devices, state))
        self._devices_incomplete.set(fleet.incomplete)
        self._devices_cloned.set(fleet.cloned)
        self._sites_in_need.set(fleet.sites_in_need)
        self._site_devices.clear()
        for record in fleet.troubled[:SITES_SHOWN]:
            for state in STATES[:-1]:
                self._site_devices.labels(record.site or "", state).set(getattr(record, state))
        self._streams_behind.set(fleet.streams_behind)
        self._events_missing.set(fleet.events_missing)

    def connections(self, pools: Mapping[str, tuple[int, int]]) -> None:
        """How many connections each pool has open, and how many of these are in use."""
        for name, (size, used) in pools.items():
            self._connections.labels(name, "used").set(used)
            self._connections.labels(name, "free").set(size - used)

    def text(self) -> bytes:
        """Return the exposition format."""
        return generate_latest(self.registry)


class Census:
    """Brings the gauges of the fleet up to date: counted in the database at most every `EVERY_S` seconds."""

    EVERY_S: Final = 15.0

    def __init__(
        self, store: Store, metrics: Metrics, criteria: Callable[[], Criteria], *, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._criteria = criteria
        self._clock = clock
        self._due = float("-inf")
        self._counting: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Count again if it is due. A database that cannot be read leaves the gauges as they were."""
        self._metrics.connections(self._store.connections())
        if self._counting is None or self._counting.done():
            if self._clock() < self._due:
                return
            self._counting = asyncio.create_task(self._count())
        await asyncio.shield(self._counting)

    async def _count(self) -> None:
        self._due = self._clock() + self.EVERY_S
        try:
            self._metrics.fleet(await self._store.fleet(criteria=self._criteria()))
        except DatabaseLost:
            pass  # logged once, by the store
        except StoreUnusable as error:
            log.warning("the fleet could not be counted: %s", error)
