"""What Prometheus sees. One object an app, on the registry it was given."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pisync_receiver.counting import shown_registry
from pisync_receiver.store import Fleet

CONTENT_TYPE = CONTENT_TYPE_LATEST

_GROUP_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters and histograms of the receiver; also the intake's watcher."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "pisync_requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        events = Counter("pisync_events", "Progress events in answered batches.", ("outcome",), registry=registry)
        self._stored = events.labels("stored")
        self._duplicates = events.labels("duplicate")
        self._rejected = events.labels("rejected")
        self.sync_events = Counter("pisync_sync_events", "Sync events answered with 201.", registry=registry)
        answers = Counter(
            "pisync_answers",
            "Questions the cache was asked: answered 304, out of the cache, or by a query.",
            ("found",),
            registry=registry,
        )
        self._answers = {found: answers.labels(found) for found in ("unchanged", "kept", "queried")}
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
        self._devices = _gauge("pisync_devices", "Devices by how they are doing.", registry, ("health",))
        self._streams_behind = _gauge("pisync_streams_behind", "Streams of which something is missing.", registry)
        self._events_missing = _gauge(
            "pisync_watermark_lag_events", "How far watermarks are behind the highest seq seen, summed.", registry
        )
        self._connections = Gauge(
            "pisync_database_connections",
            "Connections to the database server.",
            ("pool", "state"),
            registry=registry,
            multiprocess_mode="livesum",
        )

    def request(self, route: str, method: str, status: int) -> None:
        """One request was answered. `route` is the path's template, or a fixed text where none matched."""
        key = (route, method, status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(route, method, str(status))
        child.inc()

    def answer(self, found: str) -> None:
        """A question was answered: `unchanged` (304) or `kept`, both out of the cache, or `queried`."""
        self._answers[found].inc()

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
        """The fleet was counted."""
        self._devices.labels("well").set(fleet.well)
        self._devices.labels("failing").set(fleet.failing)
        self._devices.labels("unheard").set(fleet.unheard)
        self._streams_behind.set(fleet.streams_behind)
        self._events_missing.set(fleet.events_missing)

    def redis_answers(self) -> Callable[[bool], None]:
        """Count a Redis, too; what is returned hears whether it answered."""
        up = Gauge("pisync_redis_up", "Whether Redis answered.", registry=self._registry, multiprocess_mode="livemin")
        up.set(1)
        return up.set

    def connections(self, pools: Mapping[str, tuple[int, int]]) -> None:
        """How many connections each pool has open, and how many of these are in use."""
        for name, (size, used) in pools.items():
            self._connections.labels(name, "used").set(used)
            self._connections.labels(name, "free").set(size - used)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(shown_registry(self._registry))


def _gauge(name: str, about: str, registry: CollectorRegistry, labels: tuple[str, ...] = ()) -> Gauge:
    """One that every worker would find the same: the newest counts."""
    return Gauge(name, about, labels, registry=registry, multiprocess_mode="mostrecent")
