"""What receivers are measured against: `bare`, an ASGI function on uvicorn, and `serve`, the receiver with a no-op.

The no-op passes through the receiver's server, edge, routing, authorization and body reading like every other call, so
the difference to `POST /api/sync-event` is the work of storing.
"""

import functools
import sys
from typing import Any, Final

import msgspec
import uvicorn

NOOP: Final = "/api/noop"


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Decode a JSON body and encode it again."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = msgspec.json.encode(msgspec.json.decode(body))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def serve_bare() -> int:
    config = uvicorn.Config(
        bare, port=0, http="httptools", loop="uvloop", ws="none", lifespan="off", access_log=False, log_config=None
    )
    listener = config.bind_socket()
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def serve() -> int:
    """Run `pisync-receiver` with the no-op route."""
    from pisync_receiver import app
    from pisync_receiver.__main__ import main
    from pisync_receiver.http.auth import Access
    from pisync_receiver.http.request import Request
    from pisync_receiver.http.responses import Answer, json_answer
    from pisync_receiver.http.routing import Response, Route

    async def noop(request: Request) -> Answer:
        return json_answer(msgspec.json.decode(await request.body()), status=201)

    route = Route(
        method="POST",
        path=NOOP,
        access=Access.DEVICE,
        handler=noop,
        summary="Store nothing.",
        request_body=dict,
        responses={201: Response(summary="What was sent.", body=dict)},
    )
    create = functools.partial(app.Receiver.create, extra_routes=[route])
    app.Receiver.create = create  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    sys.exit(serve_bare() if sys.argv[1] == "bare" else serve())
