"""The audit log: who did what, and whether the log is as it was written."""

from typing import Final

from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.fields import day
from pisync_receiver.window.view import View, field, page

FILTERS: Final = ("act", "actor", "target", "since", "until")


_QUERY: Final = Query(
    params=(*(field(name, f"As {name} of GET /api/audit") for name in FILTERS), field("cursor", "As there"))
)


@page("GET", "/audit", Access.CHIEF, query=_QUERY)
async def audit(view: View) -> Answer:
    """Every act, export and sign-in, newest first."""
    wanted = {name: view.query[name] for name in FILTERS}
    period = {name: day(wanted, name) for name in ("since", "until")}
    found = await view.get("/api/audit", **(wanted | period), cursor=view.query["cursor"])
    return view.render("audit.html", entries=found.value, next=found.next, wanted=wanted)


PAGES: Final = (audit,)
