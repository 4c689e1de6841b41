"""Progress events: batches in, pages and exports out."""

from typing import Final

from pisync_common.models import Receipt
from pisync_receiver.api.decoding import decode_batch
from pisync_receiver.api.schemas import Batch, ProgressEvent
from pisync_receiver.domain.records import EventFilter, EventRecord
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, encode
from pisync_receiver.http.routing import route

EVENTS: Final = Query(
    params=(
        params.identifier("device_id", "Only events of this device"),
        params.text("site", "Only events of this site"),
        params.identifier("stream", "Only events of this stream"),
        params.event_type("type", "Only events of this type"),
        params.learner_id("learner_id", "Only events of this learner"),
        params.object_id("object_id", "Only events about this object"),
        params.moment("since", "Only what arrived then or later"),
        params.moment("until", "Only what arrived before"),
        params.moment("occurred_since", "Only what happened then or later, by `estimated_at`"),
        params.moment("occurred_until", "Only what happened before, by `estimated_at`"),
        LIMIT,
        CURSOR,
    )
)


@route("POST", "/api/events", Access.DEVICE, answer=Receipt, request_body=Batch, extra_schemas=(ProgressEvent,))
async def post_events(request: Request) -> Answer:
    """Deliver a batch. Stored durably before it is answered; sending it again is always safe."""
    body = await request.body()
    services = request.services
    batch = decode_batch(body, services.now_ms())
    request.caller.check_is(batch.device_id)
    receipt, headers = services.for_device(await services.intake.submit(batch, len(body)))
    services.metrics.receipt(receipt.stored, receipt.duplicates, len(receipt.rejected))
    return Answer(body=encode(receipt), headers=headers)


@route("GET", "/api/events", Access.READER, answer=list[EventRecord], pages=True, query=EVENTS)
async def get_events(request: Request) -> Answer:
    """Stored events in the order they arrived. The cursor is the `id` of a row: the page begins behind it."""
    query = request.query
    wanted = EventFilter(
        device_id=query["device_id"],
        site=query["site"],
        sites=request.caller.sites,
        stream=query["stream"],
        type=query["type"],
        learner_id=query["learner_id"],
        object_id=query["object_id"],
        since_ms=query["since"],
        until_ms=query["until"],
        occurred_since_ms=query["occurred_since"],
        occurred_until_ms=query["occurred_until"],
    )
    return request.page(await request.services.store.events(wanted, limit=query["limit"], cursor=query["cursor"]))


ROUTES: Final = (post_events, get_events)
