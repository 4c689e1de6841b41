"""Learning: how much was done each day, of which types, at which sites and with which objects."""

from typing import Any, Final

import pisync_receiver.window.series as series
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, field, page

PERIODS: Final = (7, 30, 90, 365)
TYPES: Final = 5
"""Types that the chart tells apart."""
DAILY_MAX: Final = 5_000
"""Daily sums that the chart is made of."""
ROWS: Final = 15
"""Sites, types and objects with the most events that are listed."""
FILTERS: Final = ("site", "type", "object_id")
_QUERY: Final = Query(
    params=(
        field("site", "Only this site"),
        field("type", "Only events of this type"),
        field("object_id", "Only events about this object"),
        field("days", "How many days back"),
    )
)


@page("GET", "/learning", Access.READER, query=_QUERY)
async def learning(view: View) -> Answer:
    """What learners did, day by day."""
    period = next((days for days in PERIODS if view.query["days"] == str(days)), PERIODS[1])
    wanted = {name: view.query[name] for name in FILTERS}
    days = series.days_until(view.request.services.now_ms(), period)

    since = f"{days[0]}T00:00:00Z"
    daily = await view.get_all("/api/activity", most=DAILY_MAX, **wanted, since=since, group="day,type")

    async def most(group: str, name: str) -> list[dict[str, Any]]:
        """Return the largest sums, each with its name and a filter that shows it alone."""
        found = await view.get("/api/activity", **wanted, since=since, group=group, limit=ROWS)
        return [{"name": row[name], "events": row["events"], "filter": {name: row[name]}} for row in found.value]

    return view.render(
        "learning.html",
        wanted=wanted,
        filter={name: value for name, value in wanted.items() if value is not None} | {"since": since},
        period=period,
        periods=PERIODS,
        total=sum(row["events"] for row in daily),
        chart=series.by_name(daily, days, name="type", value="events", most=TYPES, other=_("other")),
        sites=await most("site", "site"),
        types=await most("type", "type"),
        objects=await most("object", "object_id"),
    )


PAGES: Final = (learning,)
