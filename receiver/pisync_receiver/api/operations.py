"""For whoever runs the receiver: is it alive, can it store, what does it count, what can it do."""

from pisync_receiver import metrics
from pisync_receiver.answers import Answer, json_answer
from pisync_receiver.auth import Who
from pisync_receiver.marks import on_nothing
from pisync_receiver.routing import Gives, Request, Route
from pisync_receiver.views import Health


async def alive(request: Request) -> Answer:
    return json_answer(Health(status="ok"))


async def ready(request: Request) -> Answer:
    await request.services.readiness.check()
    return json_answer(Health(status="ok"))


async def counted(request: Request) -> Answer:
    await request.services.census.take()
    return Answer(status=200, body=request.services.metrics.text(), content_type=metrics.CONTENT_TYPE)


async def document(request: Request) -> Answer:
    return Answer(status=200, body=request.services.documents.openapi)


async def page(request: Request) -> Answer:
    documents = request.services.documents
    headers = ((b"content-security-policy", documents.policy.encode()), (b"x-content-type-options", b"nosniff"))
    return Answer(status=200, body=documents.page, content_type="text/html; charset=utf-8", headers=headers)


def routes() -> list[Route]:
    return [
        Route(
            method="GET",
            path="/healthz",
            who=Who.ANYONE,
            handler=alive,
            about="Whether the process answers.",
            gives={200: Gives(about="Alive.", body=Health)},
        ),
        Route(
            method="GET",
            path="/readyz",
            who=Who.ANYONE,
            handler=ready,
            about="Whether the database takes a durable write just now.",
            gives={200: Gives(about="It can store.", body=Health)},
            problems=(503,),
        ),
        Route(
            method="GET",
            path="/metrics",
            who=Who.READER,
            handler=counted,
            about="Prometheus metrics.",
            gives={200: Gives(about="The exposition format.", media=("text/plain",))},
        ),
        Route(
            method="GET",
            path="/openapi.json",
            who=Who.ANYONE,
            handler=document,
            about="This document.",
            depends=on_nothing,
            gives={200: Gives(about="OpenAPI 3.1.")},
        ),
        Route(
            method="GET",
            path="/docs",
            who=Who.ANYONE,
            handler=page,
            about="This document as a page, without scripts and without any other host.",
            depends=on_nothing,
            gives={200: Gives(about="A page.", media=("text/html",))},
        ),
    ]
