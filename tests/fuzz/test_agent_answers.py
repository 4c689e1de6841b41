"""Whatever bytes answer the agent: they are believed and can be stored, or refused as a delivery error. And whatever
line comes over its socket: an event that is taken is an event that the receiver takes.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from pisync_agent import answers
from pisync_agent.answers import Answer
from pisync_agent.errors import AgentError, DeliveryError
from pisync_agent.identity import Identity
from pisync_agent.outbox.events import NewEvent
from pisync_agent.service import protocol, server
from pisync_agent.service.decoding import decode_line
from pisync_agent.service.server import Request
from pisync_common.errors import RuleError
from pisync_common.limits import SEQ_MAX
from pisync_common.models import ERROR_CODES, Receipt, Stamp
from pisync_common.wire import encode_batch
from pisync_receiver.api.decoding import decode_batch
from tests.fuzz.mutation import Mutator
from tests.support.outboxes import opened
from tests.support.submissions import NOON

DEVICE: Final = "pibook-0042"
STREAM: Final = "9f3c1a7be2d04c55"
RECEIPTS: Final = [
    {
        "device_id": DEVICE,
        "stream": STREAM,
        "stored": 48,
        "duplicates": 2,
        "rejected": [{"seq": 17, "code": "invalid_event", "detail": "type must be noun.verb"}],
        "watermark": 50,
        "server_time": "2026-11-23T10:00:00.480Z",
        "missing": [[3, 4], [7, 7]],
    }
]
RECORDS: Final = [{"id": 1, "device_id": DEVICE, "total_errors": 0, "received_at": "2026-11-23T10:00:00Z"}]
IDENTITIES: Final = [{"device_id": DEVICE, "token": "pisync_device_c2VjcmV0"}]
PROBLEMS: Final = [
    {"type": f"urn:pisync:problem:{code}", "title": "No", "status": status, "detail": "wait"}
    for code, status in (("rate_limited", 429), ("invalid_batch", 400), ("unauthorized", 401), ("overloaded", 503))
]
STAMP: Final = Stamp(at_ms=NOON, boot_id="boot-1", boottime_ms=99_001, clock_synced=True)
FIELDS: Final = {
    "type": "video.watched",
    "stamp": [NOON, "boot-1", 99_001, False],
    "occurred_at_ms": NOON - 5,
    "id": "5c1e",
    "learner_id": "s-17",
    "object_id": "math/v03",
    "data": '{"seconds":240,"progress":0.6,"text":"é\\n"}',
    "attempt": 2**62,
    "retried": True,
}
DATA: Final = {"seconds": 240, "progress": 0.6, "notes": ["é", None, True, {"a": {"b": [1, 2, 3]}}], "text": "a\n"}
LINES: Final = [
    {"do": "record", "events": [FIELDS, {"type": "note.taken", "stamp": [NOON, "b", 0, True]}]},
    {"do": "record", "events": [{"type": "note.taken", "stamp": [NOON, "b", 0, True], "data": '{"a":[1,{"b":null}]}'}]},
    {"do": "requeue", "seq": 5},
    {"do": "status"},
]
REPLIES: Final = [
    {"seqs": [1, 2, {"code": "invalid_event", "detail": "type must be noun.verb"}]},
    {"error": {"code": "outbox_full", "detail": "no room"}},
]
HEADERS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"retry-after": "120"},
    {"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359", "date": "Sun, 06 Nov 1994 08:49:37 GMT"},
    {"retry-after": "9" * 30},
    {"retry-after": "-1", "date": "\udcff"},
    {"location": "http://[::1/x"},
    {"location": "https://user:secret@portal.example/é"},
)


def text_of(error: Exception) -> str:
    """Return an error's text, which is to be logged and stored: one line of Unicode, not too long."""
    text = str(error)
    text.encode()
    assert "\n" not in text
    assert len(text) < 2000
    return text


def check_refusal(error: DeliveryError) -> None:
    text_of(error)
    assert error.kind in ERROR_CODES
    assert error.retry_after is None or 0 <= error.retry_after <= 86_400


def check_receipt(answer: Answer) -> None:
    receipt = answers.receipt_from(answer, device_id=DEVICE, stream=STREAM)
    assert isinstance(receipt, Receipt)
    numbers = [receipt.stored, receipt.duplicates, receipt.watermark, *(row.seq for row in receipt.rejected)]
    numbers += [seq for pair in receipt.missing for seq in pair]
    assert all(type(number) is int and 0 <= number <= SEQ_MAX for number in numbers)
    for text in (receipt.server_time, *(text for row in receipt.rejected for text in (row.code, row.detail))):
        text.encode()


def check_identity(answer: Answer) -> None:
    device_id, token = answers.enrolled_from(answer)
    try:
        identity = Identity(url="https://pisync.example.org", device_id=device_id, token=token)
    except RuleError as error:  # `client.enroll` calls this a portal's answer
        raise answers.portal("the answer is not an identity") from error
    json.dumps([identity.device_id, identity.token]).encode()


def check_problem(answer: Answer) -> None:
    raise answers.fault(answer)


CASES: Final[tuple[tuple[str, list[Any], Callable[[Answer], None], int, bool], ...]] = (
    ("receipt", RECEIPTS, check_receipt, 14_000, True),
    ("record", RECORDS, lambda answer: answers.check_sync_event(answer, device_id=DEVICE), 4_000, True),
    ("identity", IDENTITIES, check_identity, 4_000, True),
    ("problem", PROBLEMS, check_problem, 8_000, False),
)


@pytest.mark.parametrize(("name", "samples", "check", "count", "good"), CASES, ids=[name for name, *_ in CASES])
def test_answer_is_believed_or_refused(
    name: str, samples: list[Any], check: Callable[[Answer], None], count: int, good: bool
) -> None:
    mutator = Mutator(name, samples)
    believed = 0
    for body in mutator.bodies(count):
        answer = answer_with(mutator, body, good)
        try:
            check(answer)
            believed += 1
        except DeliveryError as error:
            check_refusal(error)
        except BaseException as error:
            raise AssertionError(f"{error!r} of {answer!r}") from error
    assert (believed > count / 20) is good, "the answers are nearly right"


def answer_with(mutator: Mutator, body: bytes, good: bool) -> Answer:
    rng = mutator.rng
    kind = "application/json" if good else "application/problem+json"
    statuses = (200, 201) if good else (301, 400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503, 511, 599)
    status, headers = rng.choice(statuses), rng.choice(HEADERS)
    if rng.random() < 0.1:
        kind, status = rng.choice(("text/html", "", "APPLICATION/JSON ; q", "\udcff")), rng.randrange(100, 600)
    return Answer(status=status, headers={"content-type": kind, **headers}, body=body, own=rng.random() < 0.95)


def test_line_over_the_socket_is_taken_or_refused(tmp_path: Path) -> None:
    """What is taken gets a seq, and the receiver stores it: no recorded event becomes a dead letter."""
    lines = [line.replace(b"\n", b" ") for line in Mutator("line", LINES).bodies(8_000)]
    lines += [line_with(data.decode("utf-8", "replace")) for data in Mutator("data", [DATA]).bodies(4_000)]
    taken: list[NewEvent] = []
    refused = 0
    outbox = opened(tmp_path)
    for first in range(0, len(lines), 100):
        group = [asked(line) for line in lines[first : first + 100]]
        records = [(request, answer) for request, answer in group if request.events is not None]
        server.record(outbox, [request for request, _ in records])
        for request, answer in records:
            for event, result in zip(request.events or (), answered(answer)["seqs"], strict=True):
                if type(result) is int:
                    assert isinstance(event, NewEvent)
                    taken.append(event)
                else:
                    text_of(protocol.error_from(result))
                    refused += 1
    outbox.close()
    assert len(taken) > 2_000
    assert refused > 1_000
    for first in range(0, len(taken), 500):
        texts = [event.body(seq) for seq, event in enumerate(taken[first : first + 500], 1)]
        body = encode_batch(device_id=DEVICE, stream=STREAM, sent=STAMP, agent="pisync/0", events=texts)
        invalid = [(row.detail, row.body) for row in decode_batch(body, NOON).invalid]
        assert invalid == []


def line_with(data: str) -> bytes:
    event = {"type": "note.taken", "stamp": FIELDS["stamp"], "data": data}
    return json.dumps({"do": "record", "events": [event]}).encode()


class Waiting:
    """Keeps the answer to a request, in the place of a future."""

    def __init__(self) -> None:
        self.result: Mapping[str, Any] | None = None

    def done(self) -> bool:
        return self.result is not None

    def set_result(self, result: Mapping[str, Any]) -> None:
        self.result = result


def asked(line: bytes) -> tuple[Request, Waiting]:
    answer = Waiting()
    try:
        request = Request(None, decode_line(line, lambda: STAMP), answer)  # type: ignore[arg-type]
    except BaseException as error:
        raise AssertionError(f"{error!r} of {line[:2000]!r}") from error
    assert isinstance(request.do, str)
    return request, answer


def answered(answer: Waiting) -> Any:
    return json.loads(json.dumps(answer.result).encode())


def test_reply_of_the_service_is_read_or_refused() -> None:
    """By the app that asked for a record: each event has a seq or an error."""
    read = 0
    for body in Mutator("reply", REPLIES).bodies(8_000):
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            continue
        if not isinstance(message, dict):
            continue
        try:
            for result in protocol.record_results(message, 3):
                assert type(result) is int or isinstance(result, AgentError)
            read += 1
        except (AgentError, ConnectionResetError):
            pass
        except BaseException as error:
            raise AssertionError(f"{error!r} of {body[:2000]!r}") from error
    assert read > 400
