"""Operating the receiver: liveness, readiness, metrics, retention, and its documentation."""

from collections.abc import Mapping
from typing import Final

from pisync_common import __version__
from pisync_receiver import metrics
from pisync_receiver.api.decoding import decode_body
from pisync_receiver.api.schemas import Health, RetentionRequest
from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.times import shown
from pisync_receiver.http.auth import Access
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route
from pisync_receiver.store.audit import audit_statement
from pisync_receiver.store.retention import Retained
from pisync_receiver.store.running import Query


@route("GET", "/healthz", Access.PUBLIC, answer=Health)
async def healthz(request: Request) -> Answer:
    """Whether the process answers."""
    return json_answer(Health(status="ok", version=__version__))


@route("GET", "/readyz", Access.PUBLIC, answer=Health, problems=(503,))
async def readyz(request: Request) -> Answer:
    """Whether the database takes a durable write now."""
    await request.services.ready()
    return json_answer(Health(status="ok", version=__version__))


@route("GET", "/metrics", Access.METRICS, media=("text/plain",))
async def get_metrics(request: Request) -> Answer:
    """Prometheus metrics."""
    await request.services.census()
    return Answer(body=request.services.metrics.text(), content_type=metrics.CONTENT_TYPE)


@route("POST", "/api/retention", Access.CHIEF, answer=Retained, request_body=RetentionRequest)
async def retain(request: Request) -> Answer:
    """Delete one bounded batch of events and sync events that arrived long ago, or of events of one type; repeat with
    its `after` while `more`."""
    wanted = decode_body(RetentionRequest, await request.body())
    now, by = request.services.now_ms(), request.caller.actor
    before_ms = now - wanted.older_than_s * 1000

    def audit(deleted: Mapping[str, object]) -> Query:
        told = {"arrived_before": shown(before_ms), "type": wanted.type, **deleted}
        return audit_statement(audited(by, "retention.delete", None, now, told))

    return json_answer(
        await request.services.store.retain(
            before_ms, dry_run=wanted.dry_run, event_type=wanted.type, after=wanted.after, audit=audit
        )
    )


@route("GET", "/openapi.json", Access.PUBLIC)
async def openapi(request: Request) -> Answer:
    """This document."""
    return request.services.documents[0]


@route("GET", "/docs", Access.PUBLIC, media=("text/html",))
async def docs(request: Request) -> Answer:
    """This document as a page, without scripts and without any other host."""
    return request.services.documents[1]


ROUTES: Final = (healthz, readyz, get_metrics, retain, openapi, docs)
