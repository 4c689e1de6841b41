"""A request's head, and an answer to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Self

from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull
from pisync_common.problems import CONTENT_TYPE, problem_type

RETRY_AFTER_S: Final = 15
"""When to repeat what failed for want of room, or of a working disk."""

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Head:
    """A request without its body. Names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer."""

    status: int
    content: Mapping[str, Any] | None = None
    headers: Mapping[str, str]

    @classmethod
    def of(cls, status: int, content: Mapping[str, Any] | None = None, **headers: str) -> Self:
        """Return an answer in JSON; `_` in names of headers stands for `-`."""
        return cls(
            status=status, content=content, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        return replace(self, headers={**self.headers, **headers})

    @property
    def body(self) -> bytes:
        return b"" if self.content is None else _ENCODER.encode(self.content).encode()


def problem(status: int, code: str, detail: str, extra: Mapping[str, Any] | None = None, **headers: str) -> Answer:
    """Return a problem document (RFC 9457)."""
    content = problem_fields(status, code, detail) | dict(extra or {})
    return Answer.of(status, content, Content_Type=CONTENT_TYPE, **headers)


def problem_fields(status: int, code: str, detail: str) -> dict[str, Any]:
    return {"type": problem_type(code), "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def error_problem(error: AgentError, extra: Mapping[str, Any] | None = None) -> Answer:
    """Return the answer to a request that failed for this reason."""
    status = error_status(error)
    waits = {} if status == HTTPStatus.UNPROCESSABLE_ENTITY else {"Retry_After": str(RETRY_AFTER_S)}
    return problem(status, error.code, str(error), extra, **waits)


def error_status(error: AgentError) -> int:
    """Return 422 for an event that must not be sent again, 507 and 503 where the same may succeed later."""
    match error:
        case InvalidEvent():
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case OutboxFull():
            return HTTPStatus.INSUFFICIENT_STORAGE
        case _:
            return HTTPStatus.SERVICE_UNAVAILABLE
