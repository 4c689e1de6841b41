"""The audit log: who did what, to what, when and from where."""

from typing import Final

from pisync_receiver.domain.audit import AuditRecord
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import route

AUDIT: Final = Query(
    params=(
        params.moment("since", "Only entries of then or later"),
        params.moment("until", "Only entries before"),
        params.text("act", "Only this act: token.revoke"),
        params.text("actor", "Only acts of this person, token or code, as the log names it"),
        params.text("target", "Only acts on this: device pibook-0042, token 12"),
        params.choice("order", "newest or oldest first", ("newest", "oldest"), default="newest"),
        LIMIT,
        CURSOR,
    )
)


@route("GET", "/api/audit", Access.CHIEF, answer=list[AuditRecord], pages=True, query=AUDIT)
async def get_audit(request: Request) -> Answer:
    """Who did what. With order=oldest, from the first entry on, the chain of hashes can be checked."""
    query = request.query
    page = await request.services.store.audit(
        since_ms=query["since"],
        until_ms=query["until"],
        act=query["act"],
        actor=query["actor"],
        target=query["target"],
        oldest_first=query["order"] == "oldest",
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return request.page(page)


ROUTES: Final = (get_audit,)
