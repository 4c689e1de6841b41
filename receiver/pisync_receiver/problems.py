"""One shape for everything that goes wrong on the wire: `application/problem+json` (RFC 9457)."""

import logging
from http import HTTPStatus
from typing import Final

import msgspec

from pisync_common.errors import PiSyncError
from pisync_common.problems import CONTENT_TYPE, problem_type
from pisync_receiver.answers import Answer
from pisync_receiver.errors import BadCursor, DeviceIdTaken, EnrollmentRefused, Overloaded, Problem, StoreUnusable
from pisync_receiver.logs import REQUEST_ID

log = logging.getLogger(__name__)

STORE_RETRY_AFTER: Final = 30
"""Seconds a caller is asked to wait when the database cannot be written: a person has to look first."""


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong (RFC 9457). `type` is stable; `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


def answer_to(error: Exception) -> Answer:
    """The answer for anything that was raised while a request was handled."""
    problem = as_problem(error)
    body = ProblemBody(
        type=problem_type(problem.problem_code),
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        request_id=REQUEST_ID.get(),
    )
    return Answer(
        status=problem.status,
        body=msgspec.json.encode(body),
        content_type=CONTENT_TYPE,
        headers=tuple((name.encode(), value.encode()) for name, value in problem.headers.items()),
    )


def as_problem(error: Exception) -> Problem:
    """Which problem an exception is. Only what nobody expected becomes 500, and is logged with its trace."""
    match error:
        case Problem():
            return error
        case Overloaded():
            return Problem(503, error.code, str(error), headers=_retry_after(error.retry_after))
        case StoreUnusable():
            log.error("the store cannot be used: %s", error)
            # Whether a commit whose answer never came was made, nobody knows.
            detail = "the receiver cannot store or read just now; do not take this as stored, and send it again later"
            return Problem(503, error.code, detail, headers=_retry_after(STORE_RETRY_AFTER))
        case BadCursor():
            return Problem(400, "invalid_parameter", "cursor: no page gave this one; follow the Link header")
        case EnrollmentRefused():
            return Problem(403, error.code, str(error))
        case DeviceIdTaken():
            return Problem(409, error.code, str(error))
        case PiSyncError():
            log.error("an error nobody mapped", exc_info=error)
        case _:
            log.error("an unexpected error", exc_info=error)
    return Problem(500, "internal_error", "the receiver failed; its log names the reason under this request_id")


def _retry_after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
