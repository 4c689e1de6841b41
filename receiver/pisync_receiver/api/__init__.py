"""The table of routes: every call the receiver answers, one module a resource."""

from pisync_receiver.api import (
    audit,
    device_acts,
    devices,
    enrollment,
    events,
    fleet,
    learners,
    notes,
    notices,
    operations,
    sums,
    sync_events,
    tokens,
)
from pisync_receiver.http.routing import Route


def table() -> list[Route]:
    """Return every row."""
    modules = (
        *(sync_events, events, learners, enrollment, fleet, devices, device_acts, notes, notices, sums, tokens, audit),
        operations,
    )
    return [row for module in modules for row in module.ROUTES]
