"""What an admin asks of one device, and what a technician looks at: conflicts, rejected events, suspicious devices."""

from typing import Final

from pisync_receiver.api.devices import known_device
from pisync_receiver.domain.acts import Conflict, Suspicion
from pisync_receiver.domain.fleet import DeviceRecord
from pisync_receiver.domain.records import RejectedRecord
from pisync_receiver.domain.sites import Stay
from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route

ROWS: Final = Query(params=(LIMIT, CURSOR))


@route("POST", "/api/devices/{device_id}/sync", Access.ADMIN, answer=DeviceRecord, problems=(404, 409))
async def ask_for_sync(request: Request) -> Answer:
    """Ask a device to deliver everything at once. It learns of it in the answer to its next contact, and until then the
    request is pending."""
    device = await known_device(request)
    if device.retired_at is not None:
        raise Problem(409, "device_retired", f"{device.device_id} is retired: it has no token to make contact with")
    return await _changed(request, device, ask_for_sync=True)


@route("POST", "/api/devices/{device_id}/revoke", Access.ADMIN, answer=DeviceRecord, problems=(404,))
async def revoke_device(request: Request) -> Answer:
    """End all tokens of a device now; to come back it must enroll again. Other receivers refuse it within 2 seconds."""
    device = await known_device(request)
    answer = await _changed(request, device, revoke=True)
    request.services.tokens.clear()
    return answer


@route(
    "GET",
    "/api/devices/{device_id}/rejected",
    Access.READER,
    answer=list[RejectedRecord],
    pages=True,
    query=ROWS,
    problems=(404,),
)
async def list_rejected(request: Request) -> Answer:
    """What was rejected of a device, and further versions of events (code `conflict`), with reasons and as it was sent.
    A page has fewer rows where they are large."""
    device, query = await known_device(request), request.query
    page = await request.services.store.rejected(
        device.device_id, sites=request.caller.sites, limit=query["limit"], cursor=query["cursor"]
    )
    return request.page(page)


@route(
    "GET",
    "/api/devices/{device_id}/conflicts",
    Access.READER,
    answer=list[Conflict],
    pages=True,
    query=ROWS,
    problems=(404,),
)
async def list_conflicts(request: Request) -> Answer:
    """The seqs of a device under which several events were sent, all versions side by side. A page has fewer rows where
    they are large."""
    device, query = await known_device(request), request.query
    page = await request.services.store.conflicts(
        device.device_id, sites=request.caller.sites, limit=query["limit"], cursor=query["cursor"]
    )
    return request.page(page)


@route("GET", "/api/devices/{device_id}/sites", Access.READER, answer=list[Stay], problems=(404,))
async def list_sites_of_device(request: Request) -> Answer:
    """Where a device is and was, newest first. Its events keep the site of the time they happened."""
    device = await known_device(request)
    stays = await request.services.store.stays(device.device_id)
    return json_answer([stay for stay in stays if request.caller.sees(stay.site)])


@route("GET", "/api/suspicious", Access.READER, answer=list[Suspicion], pages=True, query=ROWS)
async def list_suspicious(request: Request) -> Answer:
    """Devices that seem to be several, or that were used after their end, and why."""
    return await request.cached(_suspicious)


async def _suspicious(request: Request) -> Answer:
    query = request.query
    page = await request.services.store.suspicious(
        sites=request.caller.sites, limit=query["limit"], cursor=query["cursor"]
    )
    return request.page(page)


async def _changed(
    request: Request, device: DeviceRecord, *, revoke: bool = False, ask_for_sync: bool = False
) -> Answer:
    change = DeviceChange(
        device_id=device.device_id,
        at_ms=request.services.now_ms(),
        revoke=revoke,
        ask_for_sync=ask_for_sync,
        by=request.caller.actor,
    )
    await request.services.intake.submit(change)
    return json_answer(await known_device(request))


ROUTES: Final = (ask_for_sync, revoke_device, list_rejected, list_conflicts, list_sites_of_device, list_suspicious)
