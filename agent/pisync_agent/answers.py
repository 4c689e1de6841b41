"""What an answer means: pure decisions on status, headers and body.

Captive portals, filters, gateways and broken proxies between a device and its receiver answer too. So a good answer
counts only if it is JSON, echoes the request's nonce and names this device (and, for a batch, this stream); and a
refusal touches the credentials only if it is the receiver's own problem document.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_agent.sync.retry import parse_http_date, parse_retry_after
from pisync_common import problems
from pisync_common.errors import RuleError
from pisync_common.models import Receipt
from pisync_common.rules import check_id
from pisync_common.wire import NONCE_HEADER, RECEIVER_HEADER, SYNC_HEADER, decode_receipt

KEPT: Final = "Everything is kept"
RETRIED: Final = "PiSync retries automatically"

_JSON: Final = "application/json"
_DETAIL_CHARS: Final = 300
_URL_CHARS: Final = 500
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer as it came, its body bounded and not decoded."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes
    own: bool = True
    """Whether it echoes the request's nonce; otherwise something else made it, or it answers another request."""
    echoes: bool = True
    """Whether it has a nonce at all."""

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class SignIn:
    """A sign-in page, or a filter, that answered in the receiver's place."""

    what: str
    """What it did, after the words "plain HTTP"."""
    host: str = ""
    """Where it redirects to; empty if it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The receiver's own description of an error."""

    code: str
    detail: str


# Reading


def read(status: int, headers: Mapping[str, str], raw: bytes, *, nonce: str, most: int) -> Answer:
    """Return an answer that came with a body of `raw` bytes, decompressed to at most `most`."""
    # A gateway may double a header: the same value twice proves as much as once.
    echoes = [each.strip() for each in headers.get(NONCE_HEADER.lower(), "").split(",")]
    try:
        body = decompressed(raw, headers.get("content-encoding", ""), most=most)
    except ValueError as error:
        if 200 <= status < 300:
            raise portal(str(error)) from error
        body = b""
    return Answer(status=status, headers=headers, body=body, own=set(echoes) == {nonce}, echoes=any(echoes))


def decompressed(raw: bytes, encodings: str, *, most: int) -> bytes:
    """Return a body without its content codings: a gateway may compress what it was not asked to.

    Raises ValueError if it is more than `most` bytes, broken, or of another coding.
    """
    for coding in reversed([each.strip().lower() for each in encodings.split(",")]):
        match coding:
            case "" | "identity":
                continue
            case "gzip" | "x-gzip":
                raw = _inflated(raw, zlib.MAX_WBITS | 16, most)
            case "deflate":  # zlib's format by the standard, and raw deflate from some servers
                raw = _inflated(raw, zlib.MAX_WBITS if _is_zlib(raw) else -zlib.MAX_WBITS, most)
            case _:
                raise ValueError(f"it is compressed ({printable(coding)}), which was not asked for")
    return raw


def _inflated(raw: bytes, wbits: int, most: int) -> bytes:
    body = b""
    while raw:  # gzip may have several members
        member = zlib.decompressobj(wbits)
        try:
            body += member.decompress(raw, most + 1 - len(body))
        except zlib.error as error:
            raise ValueError("it is compressed, and cannot be decompressed") from error
        if len(body) > most:
            raise ValueError("it is larger than any answer of the receiver")
        if not member.eof:
            raise ValueError("it is compressed, and cut off")
        raw = member.unused_data
    return body


def _is_zlib(raw: bytes) -> bool:
    return len(raw) > 1 and raw[0] & 0x0F == 8 and int.from_bytes(raw[:2], "big") % 31 == 0


# Good answers


def receipt_from(answer: Answer, *, device_id: str, stream: str) -> Receipt:
    """Return the receipt for a batch. Raises DeliveryError for any other answer."""
    raise_fault(answer)
    try:
        receipt = decode_receipt(_json_body(answer))
    except ValueError as error:
        raise bad_answer("not a receipt", error) from None
    if (receipt.device_id, receipt.stream) != (device_id, stream):
        raise portal("the answer is the receipt of another device or stream")
    return receipt


def check_receipt(receipt: Receipt, sent: Sequence[int]) -> None:
    """Raise BadAnswer unless a receipt accounts for each event of the batch `sent`, and for no other.

    Its watermark may be beyond them, and beyond the newest event: a clone of this card may have delivered more.
    """
    seqs = {row.seq for row in receipt.rejected}
    if not seqs <= set(sent) or len(seqs) != len(receipt.rejected):
        raise bad_answer("not a receipt of this batch: it rejects events that were not sent, or one twice")
    if receipt.stored + receipt.duplicates + len(seqs) != len(sent):
        raise bad_answer(f"not a receipt of this batch: it does not account for {len(sent)} events")


def announced(answer: Answer) -> str | None:
    """Return the address that the receiver asks its devices to use, if it names one."""
    url = answer.headers.get(RECEIVER_HEADER.lower(), "")
    return url if answer.own and 200 <= answer.status < 300 and 0 < len(url) <= _URL_CHARS else None


def asks_for_sync(answer: Answer) -> bool:
    """Return whether an admin asks this device, through the receiver, to deliver everything at once."""
    return answer.own and 200 <= answer.status < 300 and answer.headers.get(SYNC_HEADER.lower()) == "now"


def check_sync_event(answer: Answer, *, device_id: str) -> None:
    """Raise DeliveryError unless the answer says that a sync event of this device was stored."""
    raise_fault(answer)
    record = _object(answer, "not a stored sync event")
    if record.get("device_id") != device_id or "received_at" not in record:
        raise portal("the answer is not a stored sync event of this device")


def enrolled_from(answer: Answer) -> tuple[str, str]:
    """Return (device id, token) from the answer to an enrollment. Raises DeliveryError; Refused for a bad code."""
    try:
        raise_fault(answer)
    except (Declined, Refused) as error:
        problem = problem_of(answer)
        if problem is None:
            raise
        detail = problem.detail or problem.code  # it says what to do
        raise Refused(f"the receiver refused: {detail}. {KEPT}", kind="auth", problem=problem.code) from error
    given = _object(answer, "not an identity")
    device_id, token = given.get("device_id"), given.get("token")
    try:
        valid = isinstance(token, str) and _TOKEN.fullmatch(token) and check_id("device_id", device_id)  # type: ignore[arg-type]
    except RuleError:
        valid = False
    if not valid:
        raise bad_answer("not an identity")
    return str(device_id), str(token)


def _object(answer: Answer, otherwise: str) -> dict[str, Any]:
    """Return an answer's JSON object; raise BadAnswer. Without its cause: a decoder's error quotes the text."""
    try:
        document = json.loads(_json_body(answer))
    except (ValueError, RecursionError):
        raise bad_answer(otherwise) from None
    if not isinstance(document, dict):
        raise bad_answer(otherwise)
    return document


def _json_body(answer: Answer) -> bytes:
    if answer.content_type != _JSON:
        raise portal(f"it is of type {printable(answer.content_type) or 'unknown'}, not JSON")
    if not answer.echoes:
        raise portal(
            f"it does not have the header {NONCE_HEADER}. If this network has no sign-in page, a gateway before the "
            "receiver drops that header; it must pass it in requests and in answers"
        )
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
        host = redirect_host(answer)
        return portal(f"it redirects ({status}{f', to {host}' if host else ''})", host=host)
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
    return Problem(code=kind.removeprefix(problems.PREFIX), detail=printable(document.get("detail")))


def portal(what: str, *, host: str = "") -> Unreachable:
    """Return the error for an answer that came from something else than the receiver, which redirects to `host`."""
    return Unreachable(
        f"something between this device and the receiver answered in its place: {what}. {KEPT}; {RETRIED}. "
        f"{to_sign_in(host)}",
        kind="portal",
    )


def to_sign_in(host: str) -> str:
    """Say what to do about a sign-in page, at `host` if that is known."""
    browser = f"Open a browser and sign in at {host}" if host else "Open any web page on this network"
    return f"{browser}: it may require a sign-in, or its filter may have to allow the receiver"


def too_large(status: int) -> Unreachable:
    return portal(f"it ({status}) is larger than any answer of the receiver")


def bad_answer(what: str, error: Exception | None = None) -> BadAnswer:
    """Return the error for an answer that the receiver itself made, and that cannot be right."""
    why = "" if error is None else f" ({printable(str(error))})"
    return BadAnswer(
        f"the receiver's answer is {what}{why}. {KEPT}; {RETRIED}. Tell the administrator: the versions of the "
        "receiver and of this device may not fit together",
        kind="http_5xx",
    )


def sign_in(status: int, headers: Mapping[str, str], host: str) -> SignIn | None:
    """Return what `http://HOST/healthz` was answered, if a sign-in page or a filter answers so and no receiver."""
    answer = Answer(status=status, headers=headers, body=b"")
    to = redirect_host(answer)
    if status == 511:
        return SignIn(what="asks for a sign-in (511)")
    if 300 <= status < 400 and to not in ("", printable(host)):
        return SignIn(what=f"redirects ({status}, to {to})", host=to)
    if 200 <= status < 300 and answer.content_type == "text/html":
        return SignIn(what=f"answers with a web page ({status})")
    return None


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


def redirect_host(answer: Answer) -> str:
    """Return where an answer redirects to: only the host, for the rest of such an address may name a user."""
    try:
        return printable(urlsplit(answer.headers.get("location", "")).hostname)
    except ValueError:
        return ""


def printable(text: object) -> str:
    """Return foreign text in a form fit for a log: one line, of bounded length."""
    if not isinstance(text, str):
        return ""
    return "".join(each if each.isprintable() else " " for each in text[:_DETAIL_CHARS]).strip()
