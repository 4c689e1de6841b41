"""Sites: all of them, and one with its causes, speeds, activity, notes and devices in trouble."""

import asyncio
from typing import Any, Final

import pisync_receiver.window.series as series
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.fields import lines, text, whole
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, field, page

ROWS: Final = 50
DAYS_MAX: Final = 365
SERIES: Final = 5
"""Causes or types that a chart tells apart."""
SUMS_MAX: Final = 5_000
TROUBLED: Final = 12
NOTES: Final = 20
CHANGES: Final = 20
SITES: Final = Query(
    params=(
        field("search", "Part of the name"),
        field("state", "Only sites with devices in this state"),
        field("sort", "How they are sorted"),
        field("cursor", "Where the page begins"),
    )
)


@page("GET", "/sites", Access.READER, query=SITES, live=True)
async def sites(view: View) -> Answer:
    """Sites, those in most need first."""
    query = {name: view.query[name] for name in ("search", "state", "sort", "cursor")}
    found = await view.get("/api/sites", **query, limit=ROWS)
    return view.render("sites.html", sites=found.value, next=found.next, total=found.headers.get("pisync-total"))


@page("GET", "/sites/{site}", Access.READER)
async def site(view: View) -> Answer:
    """One site."""
    name = view.path["site"]
    record = (await view.get(path_of("/api/sites/{}", name))).value
    days = series.days_until(view.request.services.now_ms())
    errors, runs, speeds, activity = await asyncio.gather(
        view.get_all("/api/causes", most=SUMS_MAX, site=name),
        view.get_all("/api/runs", most=SUMS_MAX, site=name),
        view.get_all("/api/speeds", most=SUMS_MAX, site=name),
        view.get_all("/api/activity", most=SUMS_MAX, site=name, by="type"),
    )
    states = [state for state in ("silent", "failing") if record[state]]
    notes, transitions, *troubled = await asyncio.gather(
        view.get(path_of("/api/sites/{}/notes", name), limit=NOTES),
        view.get("/api/transitions", site=name, since="7d", limit=CHANGES),
        *(view.get("/api/devices", site=name, state=state, limit=TROUBLED) for state in states),
    )
    return view.render(
        "site.html",
        site=record,
        devices=[device for found in troubled for device in found.value][:TROUBLED],
        notes=notes.value,
        transitions=transitions.value,
        causes=series.by_name(errors, days, name="code", value="errors", most=SERIES, other=_("other")),
        runs=series.by_day([_split(row) for row in runs], days, "succeeded", "failed"),
        speeds=series.by_day(speeds, days, "median_mbit_s", empty=None),
        activity=series.by_name(activity, days, name="type", value="events", most=SERIES, other=_("other")),
    )


def _split(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"succeeded": row["runs"] - row["failed"]}


@page("POST", "/sites/{site}/notes", Access.ADMIN)
async def add_note(view: View) -> Answer:
    """Write a note about a site."""
    name = view.path["site"]
    await view.send("POST", path_of("/api/sites/{}/notes", name), {"text": lines(await view.form(), "text")})
    return view.redirect(path_of("/sites/{}", name), done="noted")


@page("POST", "/sites/{site}/silent-after", Access.ADMIN)
async def set_silent_after(view: View) -> Answer:
    """Set after how many days without contact the site's devices count as silent."""
    name, form = view.path["site"], await view.form()
    days = None if text(form, "days") is None else whole(form, "days", _("Days"), low=1, high=DAYS_MAX)
    await view.send("PATCH", path_of("/api/sites/{}", name), {"silent_after": None if days is None else f"{days}d"})
    return view.redirect(path_of("/sites/{}", name), done="silent-after")


PAGES: Final = (sites, site, add_note, set_silent_after)
