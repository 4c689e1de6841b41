"""Daily sums: causes, speeds, sync runs and activity, by day and site."""

from typing import Any, Final

from pisync_receiver.domain.summaries import (
    DIMENSIONS,
    ActivityRecord,
    CauseRecord,
    RunRecord,
    SpeedRecord,
    SumFilter,
)
from pisync_receiver.domain.sums import day_of
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Param, Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import route

DAYS: Final = 30
"""Unless `since` says otherwise."""
DAYS_MAX: Final = 400

_SITE: Final = params.text("site", "Only this site")
_SINCE: Final = params.moment(
    "since", f"From the day (UTC) of this time on: the last {DAYS} days unless given, and at most the last {DAYS_MAX}"
)
_UNTIL: Final = params.moment("until", "Only days that begin before this time")


def _group(text: str, _: int) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not {*names} <= {*DIMENSIONS} or len(names) > len(DIMENSIONS):
        raise ValueError(f"must be some of {', '.join(DIMENSIONS)}, with commas between them")
    return names


_GROUP: Final = Param(
    name="group",
    summary="Add up over everything else: day, site, type or object, with commas between them; the most events first",
    read=_group,
    schema={"type": "string", "pattern": "^(day|site|type|object)(,(day|site|type|object)){0,3}$"},
)
SUMS: Final = Query(params=(_SITE, _SINCE, _UNTIL, LIMIT, CURSOR))
ACTIVITY: Final = Query(
    params=(
        _SITE,
        params.event_type("type", "Only events of this type"),
        params.object_id("object_id", "Only events about this object"),
        _SINCE,
        _UNTIL,
        params.choice("by", "object: also by object, events about an object alone", ("type", "object"), default="type"),
        _GROUP,
        LIMIT,
        CURSOR,
    )
)


@route("GET", "/api/causes", Access.READER, answer=list[CauseRecord], pages=True, query=SUMS)
async def list_causes(request: Request) -> Answer:
    """Errors of sync runs by day, site and code, the newest day first."""
    return await request.cached(_causes)


async def _causes(request: Request) -> Answer:
    return request.page(await request.services.store.causes(_wanted(request), **_paging(request)))


@route("GET", "/api/runs", Access.READER, answer=list[RunRecord], pages=True, query=SUMS)
async def list_runs(request: Request) -> Answer:
    """Sync runs by day and site, the newest day first."""
    return await request.cached(_runs)


async def _runs(request: Request) -> Answer:
    return request.page(await request.services.store.runs(_wanted(request), **_paging(request)))


@route("GET", "/api/speeds", Access.READER, answer=list[SpeedRecord], pages=True, query=SUMS)
async def list_speeds(request: Request) -> Answer:
    """Measured speeds of transfers by day and site, the newest day first."""
    return await request.cached(_speeds)


async def _speeds(request: Request) -> Answer:
    return request.page(await request.services.store.speeds(_wanted(request), **_paging(request)))


@route("GET", "/api/activity", Access.READER, answer=list[ActivityRecord], pages=True, query=ACTIVITY)
async def list_activity(request: Request) -> Answer:
    """Progress events by the day on which they happened, site and type, the newest day first; or grouped otherwise."""
    return await request.cached(_activity)


async def _activity(request: Request) -> Answer:
    query = request.query
    by = DIMENSIONS if query["by"] == "object" or query["object_id"] is not None else DIMENSIONS[:-1]
    page = await request.services.store.activity(
        _wanted(request),
        type=query["type"],
        object_id=query["object_id"],
        group=query["group"] or by,
        **_paging(request),
    )
    return request.page(page)


def _wanted(request: Request) -> SumFilter:
    query = request.query
    until_ms = request.services.now_ms() + 1 if query["until"] is None else query["until"]
    last = day_of(until_ms - 1)
    first = last - DAYS + 1 if query["since"] is None else day_of(query["since"])
    return SumFilter(
        first_day=max(first, last - DAYS_MAX + 1), last_day=last, site=query["site"], sites=request.caller.sites
    )


def _paging(request: Request) -> dict[str, Any]:
    return {"limit": request.query["limit"], "cursor": request.query["cursor"]}


ROUTES: Final = (list_causes, list_runs, list_speeds, list_activity)
