"""One device: its state in a sentence, its runs, causes, speed, completeness, conflicts, dead letters and notes."""

import asyncio
from typing import Any, Final

import pisync_receiver.window.series as series
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.device_acts import acts_of, words_of
from pisync_receiver.window.runs import causes_of, clock_error_s, days_of, speeds_of
from pisync_receiver.window.view import View, field, page

RUNS: Final = 3_000
"""Sync runs that a page looks at; the newest of the last 30 days."""
NEWEST: Final = 20
"""Rows of each list on the page."""
ROWS: Final = 200
"""Sync runs of a page that lists all of them."""
HISTORY: Final = "/api/sync-event/device/{}/sync-history"
ACTS_DONE: Final = 5
"""Entries of the audit log on the page."""


@page("GET", "/devices/{device_id}", Access.READER)
async def device(view: View) -> Answer:
    """One device."""
    device_id = view.path["device_id"]
    of_device = path_of("/api/devices/{}", device_id)
    record = (await view.get(of_device)).value
    runs, complete, notes, transitions, stays = await asyncio.gather(
        view.get_all(path_of(HISTORY, device_id), most=RUNS, since=f"{series.DAYS}d"),
        view.get(f"{of_device}/completeness"),
        view.get(f"{of_device}/notes", limit=NEWEST),
        view.get("/api/transitions", device_id=device_id, limit=NEWEST),
        view.get(f"{of_device}/sites"),
    )
    done = []
    if view.is_chief:
        done = (await view.get("/api/audit", target=f"device {device_id}", limit=ACTS_DONE)).value
    completeness = complete.value
    rejected = []
    if any(stream["rejected"] for stream in completeness["streams"]):
        rejected = (await view.get(f"{of_device}/rejected", limit=NEWEST)).value
    days = series.days_until(view.request.services.now_ms())
    return view.render(
        "device.html",
        device=record,
        acts=[(act, words_of(act, device_id)["name"]) for act in acts_of(record)],
        runs=runs[:NEWEST],
        days=days_of(runs, days),
        whole=len(runs) < RUNS,
        causes=causes_of(runs),
        speeds=series.by_day(speeds_of(runs), days, "speed", empty=None),
        clock_error_s=clock_error_s(runs),
        streams=[stream | {"gaps": _gaps(stream)} for stream in completeness["streams"]],
        conflicts=(await view.get(f"{of_device}/conflicts", limit=NEWEST)).value if record["conflicts"] else [],
        rejected=[row for row in rejected if row["code"] != "conflict"],
        notes=notes.value,
        transitions=transitions.value,
        stays=stays.value,
        acts_done=done,
    )


@page("GET", "/devices/{device_id}/runs", Access.READER, query=Query(params=[field("cursor", "Where the page begins")]))
async def history(view: View) -> Answer:
    """All sync runs of a device, the newest first."""
    device_id = view.path["device_id"]
    record = (await view.get(path_of("/api/devices/{}", device_id))).value
    found = await view.get(path_of(HISTORY, device_id), cursor=view.query["cursor"], limit=ROWS)
    return view.render("runs.html", device=record, runs=found.value, next=found.next)


def _gaps(stream: dict[str, Any]) -> list[tuple[float, float]]:
    """Return where the missing ranges are on a bar of 1000, each wide enough to be seen."""
    highest = max(stream["highest"], 1)
    return [
        (round(1000 * (first - 1) / highest, 2), max(round(1000 * (last - first + 1) / highest, 2), 3.0))
        for first, last in stream["missing"]
    ]


PAGES: Final = (device, history)
