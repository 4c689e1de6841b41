"""Learners: one learner's events over time, and erasing a learner."""

from dataclasses import replace
from typing import Final

from pisync_receiver.api.decoding import decode_body
from pisync_receiver.api.schemas import ErasureRequest
from pisync_receiver.domain.records import EventRecord
from pisync_receiver.erasing import Erasure
from pisync_receiver.errors import UnknownLearner
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route

TIMELINE: Final = Query(
    params=(
        replace(params.learner_id("learner_id", "Whose events"), required=True),
        params.learner_id("learner_home", "Only the learner of this home: a site, unless the app names another"),
        params.moment("since", "Only what happened then or later"),
        params.moment("until", "Only what happened before"),
        LIMIT,
        CURSOR,
    )
)


@route("GET", "/api/learners/events", Access.READER, answer=list[EventRecord], pages=True, query=TIMELINE)
async def get_timeline(request: Request) -> Answer:
    """One learner's events by the time they happened, newest first. Times are the receiver's best estimates."""
    query = request.query
    return request.page(
        await request.services.store.timeline(
            query["learner_id"],
            home=query["learner_home"],
            since_ms=query["since"],
            until_ms=query["until"],
            sites=request.caller.sites,
            limit=query["limit"],
            cursor=query["cursor"],
        )
    )


@route("POST", "/api/learners/erase", Access.ADMIN, answer=Erasure, request_body=ErasureRequest, problems=(404, 503))
async def erase_learner(request: Request) -> Answer:
    """Erase everything stored of a learner, for good; what devices still send of them is not stored. Repeat the call
    while `more`. An admin of some sites erases learners of these homes alone."""
    wanted = decode_body(ErasureRequest, await request.body())
    sites = request.caller.sites
    if wanted.learner_home is not None and not request.caller.sees(wanted.learner_home):
        raise UnknownLearner("no learner of this home is known to this token")
    eraser = request.services.eraser
    if wanted.dry_run:
        return json_answer(await eraser.preview(wanted.learner_id, wanted.learner_home, sites))
    return json_answer(await eraser.erase(wanted.learner_id, wanted.learner_home, sites, request.caller.actor))


ROUTES: Final = (get_timeline, erase_learner)
