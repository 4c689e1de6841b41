"""The table of routes: every call the receiver answers, one module a resource, the busiest first."""

from pisync_receiver.api import devices, enrollment, events, operations, sync_events
from pisync_receiver.routing import Route


def table() -> list[Route]:
    """Every row. The first match wins, so fixed paths stand before paths with parameters."""
    return [
        *sync_events.routes(),
        *events.routes(),
        *enrollment.routes(),
        *devices.routes(),
        *operations.routes(),
    ]
