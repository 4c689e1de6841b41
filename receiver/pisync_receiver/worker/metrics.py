"""What Prometheus sees of a worker. One object a worker, on the registry it was given."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class WorkerMetrics:
    """Counters and gauges. What waits is the same whichever worker says it; what was done is each worker's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter("pisync_worker_events_published", "Events the broker confirmed.", registry=registry)
        self._messages = Counter("pisync_worker_messages_published", "Messages it confirmed.", registry=registry)
        self._lag = Gauge("pisync_worker_lag_events", "Stored events not yet handed on.", registry=registry)
        self._connected = Gauge("pisync_worker_broker_connected", "1 while the broker is there.", registry=registry)
        self._alerts = Counter(
            "pisync_worker_alerts_sent", "Notices handed to services, by outcome.", ("outcome",), registry=registry
        )
        self._told = Counter("pisync_worker_crossings_told", "Devices' alerts put into notices.", registry=registry)
        self._crossings = Gauge(
            "pisync_worker_alerts_waiting", "Devices' alerts that nobody was told yet.", registry=registry
        )
        self._notices = Gauge("pisync_worker_notices_waiting", "Notices that wait for a service.", registry=registry)
        for outcome in ("sent", "failed"):
            self._alerts.labels(outcome)

    def lag(self, events: int) -> None:
        self._lag.set(events)

    def connected(self, there: bool) -> None:
        self._connected.set(1 if there else 0)

    def published(self, *, events: int, messages: int) -> None:
        self._events.inc(events)
        self._messages.inc(messages)

    def told(self, crossings: int) -> None:
        self._told.inc(crossings)

    def alert(self, *, sent: bool) -> None:
        self._alerts.labels("sent" if sent else "failed").inc()

    def waiting(self, *, crossings: int, notices: int) -> None:
        self._crossings.set(crossings)
        self._notices.set(notices)
