"""The requests that apps may make over HTTP: record events, and see whether they are being delivered.

POST /v1/events   one event, an array of events or {"events": […]} → {"results": [{"seq": 17}, …]} after the commit
GET  /v1/status   counts, without what any learner did

docs/apps.md describes them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from pisync_agent.errors import AgentError
from pisync_agent.service import protocol
from pisync_agent.service.decoding import Events, decode, decode_events, unexpected
from pisync_agent.service.http.access import Access
from pisync_agent.service.http.messages import Answer, Head, error_problem, error_status, problem, problem_fields
from pisync_common.models import Stamp

EVENTS: Final = "/v1/events"
STATUS: Final = "/v1/status"
METHODS: Final[Mapping[str, str]] = {EVENTS: "POST", STATUS: "GET"}

Result = int | AgentError


@dataclass(frozen=True, kw_only=True)
class Api:
    """Answers requests. `record` returns once the events are durable."""

    access: Access
    record: Callable[[Events], Awaitable[list[Result]]]
    status: Callable[[], Mapping[str, Any]]
    stamp: Callable[[], Stamp]

    def refusal(self, head: Head) -> Answer | None:
        """Return the answer to a request whose body need not be kept."""
        if refused := self.access.refusal(head):
            return refused
        method = METHODS.get(head.path)
        if method is None:
            return problem(HTTPStatus.NOT_FOUND, "not_found", f"there are only {' and '.join(METHODS)}")
        if head.method == "OPTIONS":
            return self.access.preflight(head, method)
        if head.method != method:
            return problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", f"use {method}", Allow=method)
        return None

    async def answer(self, head: Head, body: bytes) -> Answer:
        """Answer a request that was not refused."""
        try:
            if head.path == STATUS:
                return Answer.of(HTTPStatus.OK, self.status())
            return await self._record(body)
        except AgentError as error:
            return error_problem(error)
        except Exception as error:
            return error_problem(unexpected(error))

    async def _record(self, body: bytes) -> Answer:
        try:
            sent = decode(body)
        except ValueError as error:
            return problem(HTTPStatus.BAD_REQUEST, "bad_request", f"the body cannot be used: {error}")
        written = sent["events"] if isinstance(sent, dict) and "events" in sent else sent
        written = written if isinstance(written, list) else [written]
        if len(written) > protocol.RECORD_EVENTS:
            detail = f"{len(written):,} events; send at most {protocol.RECORD_EVENTS:,} at once"
            return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)
        return _recorded(await self.record(decode_events(written, self.stamp)))


def _recorded(results: list[Result]) -> Answer:
    """Return each event's seq, or the problem that kept it out."""
    content = {"results": [_result(result) for result in results]}
    errors = [result for result in results if isinstance(result, AgentError)]
    if not errors:
        return Answer.of(HTTPStatus.OK, content)
    retried = [error for error in errors if error_status(error) != HTTPStatus.UNPROCESSABLE_ENTITY]
    return error_problem((retried or errors)[0], content)


def _result(result: Result) -> dict[str, Any]:
    if isinstance(result, AgentError):
        return problem_fields(error_status(result), result.code, str(result))
    return {"seq": result}
