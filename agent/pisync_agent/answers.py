"""What an answer means: pure decisions on status, headers and body.

Between a device and its receiver there are captive portals, filters, gateways and broken proxies, all of which answer
too. So a good answer counts only if it is JSON and names this device (and, for a batch, this stream), and a refusal
touches the credentials only if it is the receiver's own problem document.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_agent.policy import parse_http_date, parse_retry_after
from pisync_common import problems
from pisync_common.models import Receipt
from pisync_common.wire import decode_receipt

KEPT: Final = "Everything is kept"
BY_ITSELF: Final = "PiSync tries again by itself"

_JSON: Final = "application/json"
_DETAIL_CHARS: Final = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer as it came, its body bounded and not decoded."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The receiver's own words about what went wrong."""

    code: str
    detail: str


def receipt_from(answer: Answer, *, device_id: str, stream: str) -> Receipt:
    """The receipt for a batch. Raises DeliveryError for any other answer."""
    raise_fault(answer)
    try:
        receipt = decode_receipt(_json_body(answer))
    except ValueError as error:
        raise portal("what came back is no receipt") from error
    if (receipt.device_id, receipt.stream) != (device_id, stream):
        raise portal("what came back is the receipt of another device or stream")
    return receipt


def check_sync_event(answer: Answer, *, device_id: str) -> None:
    """Whether a sync event was stored: raises DeliveryError if not."""
    raise_fault(answer)
    try:
        record = json.loads(_json_body(answer))
    except (ValueError, RecursionError) as error:
        raise portal("what came back is no stored sync event") from error
    if not isinstance(record, dict) or record.get("device_id") != device_id or "received_at" not in record:
        raise portal("what came back is no stored sync event of this device")


def enrolled_from(answer: Answer) -> tuple[str, str]:
    """(device id, token) from the answer to an enrollment. Raises DeliveryError; Refused where a code opens nothing."""
    try:
        raise_fault(answer)
    except Declined as error:
        raise Refused(str(error), kind="auth") from error
    try:
        given = json.loads(_json_body(answer))
        device_id, token = given["device_id"], given["token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # Without its cause: a decoder's error quotes the text, and with it the token.
        raise portal("what came back is no identity") from None
    if not isinstance(device_id, str) or not isinstance(token, str):
        raise portal("what came back is no identity")
    return device_id, token


def raise_fault(answer: Answer) -> None:
    """Raise what an answer outside 200-299 means."""
    if not 200 <= answer.status < 300:
        raise fault(answer)


def fault(answer: Answer) -> DeliveryError:
    """What an answer outside 200-299 means."""
    status, problem = answer.status, problem_of(answer)
    if status < 400:
        return portal(f"the answer leads elsewhere ({status}{_leading_to(answer)})")
    if status == 511:
        return portal("the network wants a sign-in first (511)")
    if status in (401, 403):
        return _refusal(answer, problem)
    if status == 408:
        return Unreachable(_said(answer, problem, then="Less is sent at once"), kind="timeout")
    if status == 413:
        return TooLarge(_said(answer, problem, then="Less is sent at once"), kind="http_4xx")
    return _other_fault(answer, problem)


def problem_of(answer: Answer) -> Problem | None:
    """The receiver's own problem document; None if the answer is none."""
    if answer.content_type != problems.CONTENT_TYPE:
        return None
    try:
        document: Any = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(kind, str) or not kind.startswith(problems.PREFIX):
        return None
    return Problem(code=kind.removeprefix(problems.PREFIX), detail=_printable(document.get("detail")))


def portal(what: str) -> Unreachable:
    """Somebody else answered in the receiver's place."""
    return Unreachable(
        f"something in between answered, not the receiver: {what}. {KEPT}; {BY_ITSELF}. "
        "Open any web page on this network: it may want a sign-in, or its filter may have to let the receiver pass",
        kind="portal",
    )


def _refusal(answer: Answer, problem: Problem | None) -> DeliveryError:
    if problem is not None:
        detail = problem.detail or problem.code
        return Refused(
            f"the receiver refused this device ({answer.status}: {detail}). {KEPT} and nothing is sent meanwhile; "
            "ask an administrator, who can give a code to enroll this device again",
            kind="auth",
        )
    if answer.content_type == "text/html":
        return portal(f"it refused with a page of its own ({answer.status})")
    return BadAnswer(_said(answer, problem), kind="http_4xx")


def _other_fault(answer: Answer, problem: Problem | None) -> DeliveryError:
    kind = "http_4xx" if answer.status < 500 else "http_5xx"
    asked = _retry_after(answer)
    if answer.status in (429, 503):
        return Overloaded(_said(answer, problem, wait=asked), kind=kind, retry_after=asked)
    if answer.status < 500 and problem is not None:
        then = "It has to be looked at: the receiver and this device may have versions that do not fit"
        return Declined(_said(answer, problem, then=then), kind=kind)
    return BadAnswer(_said(answer, problem, wait=asked), kind=kind, retry_after=asked)


def _said(answer: Answer, problem: Problem | None, *, then: str = BY_ITSELF, wait: float | None = None) -> str:
    who = "the receiver" if problem is not None else "the receiver, or a gateway before it,"
    detail = f": {problem.detail}" if problem is not None and problem.detail else ""
    after = f", after {wait:.0f} s at the earliest" if wait else ""
    return f"{who} answered {answer.status}{detail}. {KEPT}. {then}{after}"


def _retry_after(answer: Answer) -> float | None:
    """Measured by the answer's own clock where it has one: the device's may be years off."""
    now = parse_http_date(answer.headers.get("date", "")) or datetime.now(UTC)
    return parse_retry_after(answer.headers.get("retry-after"), now)


def _json_body(answer: Answer) -> bytes:
    if answer.content_type != _JSON:
        raise portal(f"a page of type {_printable(answer.content_type) or 'nothing'} came back, not JSON")
    return answer.body


def _leading_to(answer: Answer) -> str:
    """Only the host: the rest of such an address may name a user."""
    try:
        host = urlsplit(answer.headers.get("location", "")).hostname
    except ValueError:
        return ""
    return f", to {_printable(host)}" if host else ""


def _printable(text: object) -> str:
    """Foreign text that is fit for a log: one line, of bounded length."""
    if not isinstance(text, str):
        return ""
    return "".join(each if each.isprintable() else " " for each in text[:_DETAIL_CHARS]).strip()
