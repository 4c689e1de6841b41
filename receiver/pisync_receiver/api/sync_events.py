"""Sync events: the record of each sync run of a device, and the devices that keep failing."""

from collections.abc import Mapping
from typing import Final, cast

from pisync_common.rules import ID_PATTERN, check_id
from pisync_receiver.api.decoding import decode_sync_event
from pisync_receiver.api.devices import known_device
from pisync_receiver.api.schemas import SyncEventRequest
from pisync_receiver.domain.records import FailingDevice, SyncEventRecord, sync_event_record
from pisync_receiver.domain.submissions import SyncEvent
from pisync_receiver.errors import Problem
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Param, Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, encode
from pisync_receiver.http.routing import route

_KEY = Param(
    name="Idempotency-Key",
    summary="A repeat with the same key is answered with the first record.",
    read=lambda text, _: check_id("Idempotency-Key", text),
    schema={"type": "string", "pattern": ID_PATTERN},
)
HISTORY = Query(
    params=(
        LIMIT,
        CURSOR,
        params.moment("since", "Only what is timestamped then or later"),
        params.moment("until", "Only what is timestamped before"),
        params.flag("failed", "Only failures (true) or only successes (false)"),
    )
)
FAILURES = Query(
    params=(
        params.whole("min_failures", "How many failures put a device on the list", default=3, low=1, high=1_000_000),
        params.choice(
            "mode",
            "consecutive: its newest min_failures sync events failed; total: min_failures of them did, from `since` on",
            ("consecutive", "total"),
            default="consecutive",
        ),
        params.moment("since", "With mode=total, from when failures count"),
        params.text("site", "Only devices of this site"),
        LIMIT,
        CURSOR,
    )
)


@route(
    "POST",
    "/api/sync-event",
    Access.DEVICE,
    answer=SyncEventRecord,
    status=201,
    request_body=SyncEventRequest,
    headers=(_KEY,),
)
async def post_sync_event(request: Request) -> Answer:
    """Record one sync run. Stored durably before it is answered."""
    body = await request.body()
    event, claimed_ms = decode_sync_event(body)
    request.caller.check_is(event.device_id)
    services = request.services
    submission = SyncEvent(
        device_id=event.device_id,
        timestamp=event.timestamp,
        claimed_ms=claimed_ms,
        total_files_synced=event.total_files_synced,
        total_errors=event.total_errors,
        internet_speed=event.internet_speed,
        errors=cast("Mapping[str, int]", event.errors),
        idempotency_key=_idempotency_key(request),
        received_ms=services.now_ms(),
    )
    stored, headers = services.for_device(await services.intake.submit(submission, len(body)))
    services.metrics.sync_events.inc()
    return Answer(status=201, body=encode(sync_event_record(stored)), headers=headers)


@route(
    "GET",
    "/api/sync-event/device/{device_id}/sync-history",
    Access.OWNER,
    answer=list[SyncEventRecord],
    pages=True,
    query=HISTORY,
    problems=(404,),
)
async def sync_history(request: Request) -> Answer:
    """The sync events of one device, newest first."""
    query = request.query
    row = await known_device(request)
    page = await request.services.store.history(
        row.device_id,
        limit=query["limit"],
        cursor=query["cursor"],
        since_ms=query["since"],
        until_ms=query["until"],
        failed=query["failed"],
        sites=request.caller.sites,
    )
    return request.page(page)


@route(
    "GET",
    "/api/sync-event/devices/repeated-failures",
    Access.READER,
    answer=list[FailingDevice],
    pages=True,
    query=FAILURES,
)
async def repeated_failures(request: Request) -> Answer:
    """Devices that keep failing, worst first."""
    return await request.cached(_failures)


async def _failures(request: Request) -> Answer:
    query = request.query
    page = await request.services.store.failures(
        min_failures=query["min_failures"],
        mode=query["mode"],
        since_ms=query["since"],
        site=query["site"],
        sites=request.caller.sites,
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return request.page(page)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get(b"idempotency-key")
    if key is None:
        return None
    try:
        return check_id("Idempotency-Key", key.decode("latin-1"))
    except ValueError as error:
        raise Problem(400, "invalid_parameter", str(error)) from error


ROUTES: Final = (post_sync_event, sync_history, repeated_failures)
