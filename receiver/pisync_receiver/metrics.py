"""What Prometheus sees. One object an app, on the registry it was given."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pisync_receiver.counting import shown_registry

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
        self._group_size = Histogram(
            "pisync_intake_group_size", "Submissions in one commit.", registry=registry, buckets=_GROUP_SIZES
        )
        self._wait = Histogram(
            "pisync_intake_wait_seconds",
            "From a group's first submission to its commit.",
            registry=registry,
            buckets=_SECONDS,
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

    def group(self, size: int, waited: float) -> None:
        self._group_size.observe(size)
        self._wait.observe(waited)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(shown_registry(self._registry))
