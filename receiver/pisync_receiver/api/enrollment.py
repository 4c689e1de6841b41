"""Enrollment: a code from an admin becomes a device's identity and token."""

import secrets

from pisync_receiver.answers import Answer, json_answer
from pisync_receiver.auth import Who, new_token, token_hash
from pisync_receiver.codes import normalized
from pisync_receiver.decoding import decode_enrollment
from pisync_receiver.routing import Gives, Request, Route
from pisync_receiver.store import Enroll
from pisync_receiver.views import Identity
from pisync_receiver.wire import Enrollment


async def enroll(request: Request) -> Answer:
    wanted = decode_enrollment(await request.body())
    services = request.services
    token = new_token("device")
    submission = Enroll(
        code_hash=token_hash(normalized(wanted.code)),
        device_id=wanted.device_id,
        fallback_device_id=f"pi-{secrets.token_hex(6)}",
        token_hash=token_hash(token),
        at_ms=services.now_ms(),
    )
    enrolled = await services.intake.submit(submission)
    for row in (enrolled.token, *enrolled.ending):
        services.tokens.put(row)
    return json_answer(Identity(device_id=enrolled.device_id, token=token), status=201)


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/api/enroll",
            who=Who.ANYONE,
            handler=enroll,
            about="Exchange a code for an identity. An answer that got lost needs another use of a code.",
            takes=Enrollment,
            gives={201: Gives(about="The identity; its token is shown this once.", body=Identity)},
            problems=(403, 409),
        )
    ]
