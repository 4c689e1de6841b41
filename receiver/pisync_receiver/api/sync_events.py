"""Sync events: what each sync run of a device reported, and which devices keep failing."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from pisync_common.rules import ID_PATTERN, check_id
from pisync_receiver import params
from pisync_receiver.answers import Answer, json_answer
from pisync_receiver.api.devices import known_device
from pisync_receiver.auth import Who
from pisync_receiver.decoding import decode_sync_event
from pisync_receiver.errors import Problem
from pisync_receiver.marks import Mark, on_anything
from pisync_receiver.pages import CURSOR, LIMIT, page_answer
from pisync_receiver.params import Param, Query
from pisync_receiver.routing import Gives, Request, Route
from pisync_receiver.store import SyncReport
from pisync_receiver.views import FailingDevice, SyncEventRecord, failing_device, sync_event_record
from pisync_receiver.wire import SyncEvent

_KEY = Param(
    name="Idempotency-Key",
    about="A repeat with the same key is answered with the first record.",
    read=lambda text, _: check_id("Idempotency-Key", text),
    schema={"type": "string", "pattern": ID_PATTERN},
)
_HISTORY = Query(
    params=(
        LIMIT,
        CURSOR,
        params.moment("since", "Only what is timestamped then or later"),
        params.moment("until", "Only what is timestamped before"),
        params.flag("failed", "Only failures (true) or only successes (false)"),
    )
)
_FAILURES = Query(
    params=(
        params.whole("min_failures", "How many failures make a device one of these", default=3, low=1, high=1_000_000),
        params.choice(
            "mode",
            "consecutive: its newest min_failures sync events all failed; total: so many failed within `since`",
            ("consecutive", "total"),
            default="consecutive",
        ),
        params.moment("since", "With mode=total, from when failures count"),
        params.text("site", "Only devices of this site"),
        LIMIT,
        CURSOR,
    )
)


async def post_sync_event(request: Request) -> Answer:
    body = await request.body()
    event, at_ms = decode_sync_event(body)
    request.caller.check_is(event.device_id)
    services = request.services
    report = SyncReport(
        device_id=event.device_id,
        timestamp=event.timestamp,
        at_ms=at_ms,
        total_files_synced=event.total_files_synced,
        total_errors=event.total_errors,
        internet_speed=event.internet_speed,
        errors=cast("Mapping[str, int]", event.errors),
        idempotency_key=_idempotency_key(request),
        received_ms=services.now_ms(),
    )
    stored = await services.intake.submit(report, len(body))
    services.metrics.sync_events.inc()
    return json_answer(sync_event_record(stored), status=201)


async def sync_history(request: Request) -> Answer:
    query = request.query()
    row = await known_device(request)
    page = await asyncio.to_thread(
        request.services.store.history,
        row.device_id,
        limit=query["limit"],
        cursor=query["cursor"],
        since_ms=query["since"],
        until_ms=query["until"],
        failed=query["failed"],
    )
    return page_answer(request, page, sync_event_record)


async def repeated_failures(request: Request) -> Answer:
    query = request.query()
    page = await asyncio.to_thread(
        request.services.store.failures,
        min_failures=query["min_failures"],
        mode=query["mode"],
        since_ms=query["since"],
        site=query["site"],
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return page_answer(request, page, failing_device)


def _failures_depend_on(query: Mapping[str, Any]) -> Mark:
    """Only reports of devices with a streak change who has one; failures altogether, any report."""
    return Mark.FAILING if query["mode"] == "consecutive" else Mark.ANYTHING


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get(b"idempotency-key")
    if key is None:
        return None
    try:
        return check_id("Idempotency-Key", key.decode("latin-1"))
    except ValueError as error:
        raise Problem(400, "invalid_parameter", str(error)) from error


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/api/sync-event",
            who=Who.DEVICE,
            handler=post_sync_event,
            about="Report one sync run. Stored durably before it is answered.",
            takes=SyncEvent,
            headers=(_KEY,),
            gives={201: Gives(about="The stored record.", body=SyncEventRecord)},
        ),
        Route(
            method="GET",
            path="/api/sync-event/device/{device_id}/sync-history",
            who=Who.OWNER,
            handler=sync_history,
            about="The sync events of one device, newest first.",
            query=_HISTORY,
            depends=on_anything,
            gives={200: Gives(about="A page.", body=list[SyncEventRecord], pages=True)},
            problems=(404,),
        ),
        Route(
            method="GET",
            path="/api/sync-event/devices/repeated-failures",
            who=Who.READER,
            handler=repeated_failures,
            about="Devices that keep failing, worst first.",
            query=_FAILURES,
            depends=_failures_depend_on,
            gives={200: Gives(about="A page.", body=list[FailingDevice], pages=True)},
        ),
    ]
