"""What changed and who was told: transitions of devices, and the notices made of them."""

from typing import Final

from pisync_receiver.domain.notices import NoticeRecord, TransitionRecord
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import route

TRANSITIONS = Query(
    params=(
        params.text("site", "Only devices that were at this site then"),
        params.identifier("device_id", "Only this device"),
        params.moment("since", "Only what was noticed at or after this time"),
        LIMIT,
        CURSOR,
    )
)
NOTICES = Query(params=(params.moment("since", "Only notices made at or after this time"), LIMIT, CURSOR))


@route("GET", "/api/transitions", Access.READER, answer=list[TransitionRecord], pages=True, query=TRANSITIONS)
async def list_transitions(request: Request) -> Answer:
    """Devices that went from one state to another, the newest first; kept for 90 days."""
    query = request.query
    page = await request.services.store.transitions(
        site=query["site"],
        device_id=query["device_id"],
        sites=request.caller.sites,
        since_ms=query["since"],
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return request.page(page)


@route("GET", "/api/notices", Access.CHIEF, answer=list[NoticeRecord], pages=True, query=NOTICES)
async def list_notices(request: Request) -> Answer:
    """The notices that were made, and whether each service has accepted them, the newest first; kept for 30 days."""
    query = request.query
    page = await request.services.store.notices(since_ms=query["since"], limit=query["limit"], cursor=query["cursor"])
    return request.page(page)


ROUTES: Final = (list_transitions, list_notices)
