"""Notes: what people write about a device or a site."""

from typing import Final

from pisync_receiver.api.decoding import decode_body
from pisync_receiver.api.devices import known_device
from pisync_receiver.api.fleet import known_site
from pisync_receiver.api.schemas import NewNote
from pisync_receiver.domain.acts import Note
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route

NOTES: Final = Query(params=(LIMIT, CURSOR))
OF_DEVICE: Final = "/api/devices/{device_id}/notes"
OF_SITE: Final = "/api/sites/{site}/notes"


@route("GET", OF_DEVICE, Access.READER, answer=list[Note], pages=True, query=NOTES, problems=(404,))
async def list_notes_of_device(request: Request) -> Answer:
    """What was written about a device, newest first."""
    return await _listed(request, device_id=(await known_device(request)).device_id)


@route("POST", OF_DEVICE, Access.ADMIN, answer=Note, status=201, request_body=NewNote, problems=(404,))
async def add_note_to_device(request: Request) -> Answer:
    """Write a note about a device."""
    wanted = decode_body(NewNote, await request.body())
    return await _added(request, wanted, device_id=(await known_device(request)).device_id)


@route("GET", OF_SITE, Access.READER, answer=list[Note], pages=True, query=NOTES, problems=(404,))
async def list_notes_of_site(request: Request) -> Answer:
    """What was written about a site, newest first."""
    return await _listed(request, site=(await known_site(request)).site)


@route("POST", OF_SITE, Access.ADMIN, answer=Note, status=201, request_body=NewNote, problems=(404,))
async def add_note_to_site(request: Request) -> Answer:
    """Write a note about a site."""
    wanted = decode_body(NewNote, await request.body())
    return await _added(request, wanted, site=(await known_site(request)).site)


async def _listed(request: Request, *, device_id: str | None = None, site: str | None = None) -> Answer:
    query = request.query
    notes = request.services.store.notes
    return request.page(await notes(device_id=device_id, site=site, limit=query["limit"], cursor=query["cursor"]))


async def _added(request: Request, wanted: NewNote, *, device_id: str | None = None, site: str | None = None) -> Answer:
    services = request.services
    text = wanted.text.replace("\r\n", "\n").replace("\r", "\n")
    note = await services.store.add_note(
        device_id=device_id, site=site, at_ms=services.now_ms(), by=request.caller.actor, text=text
    )
    return json_answer(note, status=201)


ROUTES: Final = (list_notes_of_device, add_note_to_device, list_notes_of_site, add_note_to_site)
