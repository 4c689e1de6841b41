"""Devices: search, filter, sort and page through them."""

from typing import Final

from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.view import View, field, page

ROWS: Final = 50
DEVICES: Final = Query(
    params=(
        field("search", "Part of the id, the label or the site"),
        field("site", "Only devices of this site"),
        field("without_site", "Only devices that belong to no site"),
        field("state", "Only devices in this state"),
        field("incomplete", "Only devices of which something is missing"),
        field("cloned", "Only devices that seem to be several"),
        field("sort", "How they are sorted"),
        field("cursor", "Where the page begins"),
    )
)
FILTERS: Final = ("search", "site", "without_site", "state", "incomplete", "cloned", "sort", "cursor")


@page("GET", "/devices", Access.READER, query=DEVICES, live=True)
async def devices(view: View) -> Answer:
    """Devices, searched, filtered and sorted."""
    found = await view.get("/api/devices", **{name: view.query[name] for name in FILTERS}, limit=ROWS)
    total = found.headers.get("pisync-total")
    return view.render(
        "devices.html", devices=found.value, next=found.next, total=None if total is None else int(total)
    )


PAGES: Final = (devices,)
