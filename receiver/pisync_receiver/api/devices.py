"""Devices: who is there, who was heard when, and whether each stream is complete."""

import asyncio

from pisync_receiver import params
from pisync_receiver.answers import Answer, json_answer
from pisync_receiver.auth import Who
from pisync_receiver.errors import Problem
from pisync_receiver.marks import on_anything
from pisync_receiver.pages import CURSOR, LIMIT, page_answer
from pisync_receiver.params import Query
from pisync_receiver.routing import Gives, Request, Route
from pisync_receiver.store import DeviceRow
from pisync_receiver.views import Completeness, DeviceRecord, completeness_record, device_record

_DEVICES = Query(
    params=(
        params.text("site", "Only devices of this site"),
        params.duration("silent_for", "Only devices not heard for so long: 12h, 3d"),
        LIMIT,
        CURSOR,
    )
)


async def devices(request: Request) -> Answer:
    query = request.query()
    silent_for = query["silent_for"]
    page = await asyncio.to_thread(
        request.services.store.devices,
        site=query["site"],
        silent_since_ms=None if silent_for is None else request.services.now_ms() - silent_for,
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return page_answer(request, page, device_record)


async def device(request: Request) -> Answer:
    return json_answer(device_record(await known_device(request)))


async def completeness(request: Request) -> Answer:
    row = await known_device(request)
    streams = await asyncio.to_thread(request.services.store.completeness, row.device_id)
    return json_answer(completeness_record(row, streams))


async def known_device(request: Request) -> DeviceRow:
    """The device that the path names. Raises Problem 404."""
    row = await asyncio.to_thread(request.services.store.device, request.path["device_id"])
    if row is None:
        raise Problem(404, "unknown_device", "no device of this id has enrolled or reported here")
    return row


def routes() -> list[Route]:
    return [
        Route(
            method="GET",
            path="/api/devices",
            who=Who.READER,
            handler=devices,
            about="Every device: when it was last heard, and how its sync runs go.",
            query=_DEVICES,
            depends=on_anything,
            gives={200: Gives(about="A page.", body=list[DeviceRecord], pages=True)},
        ),
        Route(
            method="GET",
            path="/api/devices/{device_id}",
            who=Who.READER,
            handler=device,
            about="One device. One that cannot get through cannot say so: last contact and last refusal tell.",
            depends=on_anything,
            gives={200: Gives(about="The device.", body=DeviceRecord)},
            problems=(404,),
        ),
        Route(
            method="GET",
            path="/api/devices/{device_id}/completeness",
            who=Who.READER,
            handler=completeness,
            about="For each stream of a device: what is accounted for, what is missing, what was rejected.",
            depends=on_anything,
            gives={200: Gives(about="The streams.", body=Completeness)},
            problems=(404,),
        ),
    ]
