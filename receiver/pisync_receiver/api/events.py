"""Progress events: batches in, pages and exports out."""

import asyncio
from typing import Final

from pisync_receiver import export, params
from pisync_receiver.answers import Answer, Stream, json_answer
from pisync_receiver.auth import Who
from pisync_receiver.decoding import decode_batch
from pisync_receiver.marks import on_anything
from pisync_receiver.negotiation import choose
from pisync_receiver.pages import CURSOR, LIMIT, page_answer
from pisync_receiver.params import Query
from pisync_receiver.routing import Gives, Request, Route
from pisync_receiver.store import EventBatch, EventFilter
from pisync_receiver.views import EventRecord, ReceiptRecord, event_record, receipt_record
from pisync_receiver.wire import Batch, ProgressEvent

_JSON: Final = "application/json"
_QUERY: Final = Query(
    params=(
        params.identifier("device_id", "Only events of this device"),
        params.text("site", "Only events of devices of this site"),
        params.identifier("stream", "Only events of this stream"),
        params.event_type("type", "Only events of this type"),
        params.identifier("learner_id", "Only events of this learner"),
        params.object_id("object_id", "Only events about this object"),
        params.moment("since", "Only what arrived then or later"),
        params.moment("until", "Only what arrived before"),
        LIMIT,
        CURSOR,
    )
)


async def post_events(request: Request) -> Answer:
    body = await request.body()
    batch = decode_batch(body)
    request.caller.check_is(batch.device_id)
    services = request.services
    submission = EventBatch(
        device_id=batch.device_id,
        stream=batch.stream,
        sent=batch.sent,
        agent=batch.agent,
        events=batch.events,
        invalid=batch.invalid,
        received_ms=services.now_ms(),
    )
    receipt = await services.intake.submit(submission, len(body))
    services.metrics.receipt(receipt.stored, receipt.duplicates, len(receipt.rejected))
    return json_answer(receipt_record(receipt))


async def get_events(request: Request) -> Answer | Stream:
    media = choose(request.headers.get(b"accept"), (_JSON, *export.WRITERS))
    query = request.query()
    limit, cursor = query["limit"], query["cursor"]
    wanted = EventFilter(
        device_id=query["device_id"],
        site=query["site"],
        stream=query["stream"],
        type=query["type"],
        learner_id=query["learner_id"],
        object_id=query["object_id"],
        since_ms=query["since"],
        until_ms=query["until"],
    )
    if media == _JSON:
        page = await asyncio.to_thread(request.services.store.events, wanted, cursor=cursor, limit=limit)
        return page_answer(request, page, event_record)
    return export.stream(request, wanted, cursor, media)


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/api/events",
            who=Who.DEVICE,
            handler=post_events,
            about="Deliver a batch. Stored durably before it is answered; sending it again is always safe.",
            takes=Batch,
            mentions=(ProgressEvent,),
            gives={200: Gives(about="The receipt.", body=ReceiptRecord)},
        ),
        Route(
            method="GET",
            path="/api/events",
            who=Who.READER,
            handler=get_events,
            about="Stored events in the order they arrived: pages, or everything as NDJSON or CSV by Accept.",
            query=_QUERY,
            depends=on_anything,
            gives={
                200: Gives(
                    about="A page, or an export of everything from the cursor on, whatever the limit.",
                    body=list[EventRecord],
                    media=(_JSON, *export.WRITERS),
                    pages=True,
                )
            },
            problems=(406,),
        ),
    ]
