"""The table of routes: every call the receiver answers, one module a resource."""

from dataclasses import replace

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
from pisync_receiver.api.examples import BODIES
from pisync_receiver.http.routing import Route


def table() -> list[Route]:
    """Return every row."""
    modules = (
        *(sync_events, events, learners, enrollment, fleet, devices, device_acts, notes, notices, sums, tokens, audit),
        operations,
    )
    rows = [row for module in modules for row in module.ROUTES]
    return [row if row.request_body is None else replace(row, example=BODIES.get(row.request_body)) for row in rows]
