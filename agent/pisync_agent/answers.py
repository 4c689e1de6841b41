"""What an answer, or its absence, means: pure decisions on status, headers, body and errors.

Captive portals, filters, gateways and broken proxies between a device and its receiver answer too. So a good answer
counts only if it is JSON, echoes the request's nonce and names this device (and, for a batch, this stream); and a
refusal touches the credentials only if it is the receiver's own problem document.
"""

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_agent.sync.retry import parse_http_date, parse_retry_after
from pisync_common import problems
from pisync_common.models import Receipt
from pisync_common.wire import decode_receipt

KEPT: Final = "Everything is kept"
RETRIED: Final = "PiSync retries automatically"

_JSON: Final = "application/json"
_DETAIL_CHARS: Final = 300
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer as it came, its body bounded and not decoded."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes
    own: bool = True
    """Whether it echoes the request's nonce; otherwise something else made it, or it answers another request."""

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The receiver's own description of an error."""

    code: str
    detail: str


# Good answers


def receipt_from(answer: Answer, *, device_id: str, stream: str) -> Receipt:
    """Return the receipt for a batch. Raises DeliveryError for any other answer."""
    raise_fault(answer)
    try:
        receipt = decode_receipt(_json_body(answer))
    except ValueError as error:
        raise portal("the answer is not a receipt") from error
    if (receipt.device_id, receipt.stream) != (device_id, stream):
        raise portal("the answer is the receipt of another device or stream")
    return receipt


def check_sync_event(answer: Answer, *, device_id: str) -> None:
    """Raise DeliveryError unless the answer says that a sync event of this device was stored."""
    raise_fault(answer)
    try:
        record = json.loads(_json_body(answer))
    except (ValueError, RecursionError) as error:
        raise portal("the answer is not a stored sync event") from error
    if not isinstance(record, dict) or record.get("device_id") != device_id or "received_at" not in record:
        raise portal("the answer is not a stored sync event of this device")


def enrolled_from(answer: Answer) -> tuple[str, str]:
    """Return (device id, token) from the answer to an enrollment. Raises DeliveryError; Refused for a bad code."""
    try:
        raise_fault(answer)
    except Declined as error:
        raise Refused(str(error), kind="auth") from error
    try:
        given = json.loads(_json_body(answer))
        device_id, token = given["device_id"], given["token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # Without its cause: a decoder's error quotes the text, and with it the token.
        raise portal("the answer is not an identity") from None
    if not isinstance(device_id, str) or not isinstance(token, str):
        raise portal("the answer is not an identity")
    return device_id, token


def _json_body(answer: Answer) -> bytes:
    if answer.content_type != _JSON:
        raise portal(f"it is of type {_printable(answer.content_type) or 'unknown'}, not JSON")
    if not answer.own:
        raise portal("it does not echo the request's nonce, so it was not made for this request")
    return answer.body


# Faults


def raise_fault(answer: Answer) -> None:
    """Raise what an answer outside 200-299 means."""
    if not 200 <= answer.status < 300:
        raise fault(answer)


def fault(answer: Answer) -> DeliveryError:
    """Return what an answer outside 200-299 means."""
    status, problem = answer.status, problem_of(answer)
    if status < 400:
        return portal(f"it redirects ({status}{_redirect_host(answer)})")
    if status == 511:
        return portal("the network requires a sign-in (511)")
    if status in (401, 403):
        return _refusal(answer, problem)
    if status == 408:
        return Unreachable(_text(answer, problem, then="The next batch is smaller"), kind="timeout")
    if status == 413:
        return TooLarge(_text(answer, problem, then="The next batch is smaller"), kind="http_4xx")
    return _other_fault(answer, problem)


def problem_of(answer: Answer) -> Problem | None:
    """Return the receiver's own problem document, if the answer is one and was made for this request."""
    if answer.content_type != problems.CONTENT_TYPE or not answer.own:
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
    """Return the error for an answer that came from something else than the receiver."""
    return Unreachable(
        f"something between this device and the receiver answered in its place: {what}. {KEPT}; {RETRIED}. "
        "Open any web page on this network: it may require a sign-in, or its filter may have to allow the receiver",
        kind="portal",
    )


def _refusal(answer: Answer, problem: Problem | None) -> DeliveryError:
    if problem is not None:
        detail = problem.detail or problem.code
        return Refused(
            f"the receiver refused this device ({answer.status}: {detail}). {KEPT} and nothing is sent meanwhile; "
            "ask an administrator for a code to enroll this device again",
            kind="auth",
        )
    if answer.content_type == "text/html":
        return portal(f"it is a web page that refuses access ({answer.status})")
    return BadAnswer(_text(answer, problem), kind="http_4xx")


def _other_fault(answer: Answer, problem: Problem | None) -> DeliveryError:
    kind = "http_4xx" if answer.status < 500 else "http_5xx"
    wait = _retry_after(answer)
    if answer.status in (429, 503):
        return Overloaded(_text(answer, problem, wait=wait), kind=kind, retry_after=wait)
    if answer.status < 500 and problem is not None:
        then = "Tell the administrator: the versions of the receiver and of this device may not fit together"
        return Declined(_text(answer, problem, then=then), kind=kind)
    return BadAnswer(_text(answer, problem, wait=wait), kind=kind, retry_after=wait)


def _text(answer: Answer, problem: Problem | None, *, then: str = RETRIED, wait: float | None = None) -> str:
    who = "the receiver" if problem is not None else "the receiver, or a gateway before it,"
    detail = f": {problem.detail}" if problem is not None and problem.detail else ""
    after = f", after {wait:.0f} s at the earliest" if wait else ""
    return f"{who} answered {answer.status}{detail}. {KEPT}. {then}{after}"


def _retry_after(answer: Answer) -> float | None:
    """Return `Retry-After`, by the answer's own clock where it has one: the device's may be years off."""
    now = parse_http_date(answer.headers.get("date", "")) or datetime.now(UTC)
    return parse_retry_after(answer.headers.get("retry-after"), now)


def _redirect_host(answer: Answer) -> str:
    """Name only the host: the rest of such an address may name a user."""
    try:
        host = urlsplit(answer.headers.get("location", "")).hostname
    except ValueError:
        return ""
    return f", to {_printable(host)}" if host else ""


def _printable(text: object) -> str:
    """Return foreign text in a form fit for a log: one line, of bounded length."""
    if not isinstance(text, str):
        return ""
    return "".join(each if each.isprintable() else " " for each in text[:_DETAIL_CHARS]).strip()


# No answer


def no_answer(error: BaseException, host: str, *, clock_synced: bool) -> Unreachable:
    """Return what the error of a request without an answer means, from the causes behind it."""
    for cause in causes(error):
        if isinstance(cause, Unreachable):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return bad_certificate(cause, host, clock_synced=clock_synced)
        if isinstance(cause, socket.gaierror | UnicodeError):
            return name_not_found(cause, host)
        if isinstance(cause, TimeoutError):
            return timed_out(host)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return no_tls(cause, host)
    return disconnected(error, host)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the nearest first."""
    known: BaseException | None = error
    while known is not None:
        yield known
        known = known.__cause__ or known.__context__


def name_not_found(error: BaseException, host: str) -> Unreachable:
    return Unreachable(
        f"the name {host} cannot be resolved ({_reason(error)}). {KEPT}; {RETRIED}. If it persists, check this "
        "network's DNS, and the address given at enrollment",
        kind="dns",
    )


def timed_out(host: str) -> Unreachable:
    return Unreachable(
        f"{host} did not answer in time. {KEPT}, and what was in flight is sent again; {RETRIED}, with smaller batches",
        kind="timeout",
    )


def disconnected(error: BaseException, host: str) -> Unreachable:
    return Unreachable(
        f"no connection to {host}, or it was interrupted ({_reason(error)}). {KEPT}, and what was in flight is sent "
        f"again; {RETRIED}",
        kind="connect",
    )


def bad_certificate(error: ssl.SSLCertVerificationError, host: str, *, clock_synced: bool) -> Unreachable:
    early = error.verify_code == _NOT_YET_VALID
    if early or (error.verify_code == _EXPIRED and not clock_synced):
        when = "not valid yet" if early else "no longer valid"
        return Unreachable(
            f"by this device's clock the certificate of {host} is {when}, so the clock is most likely wrong. {KEPT}; "
            f"{RETRIED}. See `date`; the clock is set automatically once NTP is reachable (timedatectl)",
            kind="clock",
        )
    return Unreachable(
        f"the certificate of {host} cannot be trusted ({error.verify_message}). {KEPT}; {RETRIED}. It may have to be "
        "renewed, or a private authority named at enrollment (--ca), or this network intercepts TLS",
        kind="tls",
    )


def no_tls(error: ssl.SSLError, host: str) -> Unreachable:
    reason = getattr(error, "reason", None) or _reason(error)
    return Unreachable(
        f"no secure connection to {host} ({reason}). {KEPT}; {RETRIED}. A filter may block TLS, or the server may not "
        "offer TLS at that port",
        kind="tls",
    )


def bad_ca_file(ca_file: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"the certificate authority named at enrollment, {ca_file}, cannot be used ({_reason(error)}). {KEPT}. "
        "Put a PEM file there that this user can read, or enroll again with another file",
        kind="tls",
    )


def bad_proxy(error: Exception) -> Unreachable:
    return Unreachable(
        f"the proxy from the environment cannot be used ({_reason(error)}). {KEPT}. "
        "Correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY where the agent is started",
        kind="connect",
    )


def _reason(error: BaseException) -> str:
    """Return what the system said at the root of an error."""
    for cause in reversed(list(causes(error))):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
