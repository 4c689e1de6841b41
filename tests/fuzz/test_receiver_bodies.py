"""Whatever bytes a caller sends as a body: they are stored as something that every answer can show, or refused as
documented. The bodies are nearly right and the same in each run; `mutation` has the settings for others, and for more.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import astuple

from pisync_common.limits import DECODED_BYTES
from pisync_common.models import Receipt
from pisync_receiver.api import schemas
from pisync_receiver.api.decoding import decode_batch, decode_body, decode_enrollment, decode_sync_event, to_ms
from pisync_receiver.api.enrollment import normalized
from pisync_receiver.domain.fleet import device_record
from pisync_receiver.domain.records import sync_event_record
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import DeviceChange, SyncEvent
from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import token_hash
from pisync_receiver.http.request import BodyLimits, BodyReader
from pisync_receiver.store.reading import event_record
from tests.fuzz.mutation import Mutator
from tests.support.live_receiver import DEVICE, live_receiver
from tests.support.memory_store import MemoryStore
from tests.support.submissions import CRITERIA, NOON

STAMP: Final = {"boot_id": "boot-1", "boottime_ms": 99_001, "clock_synced": False}
EVENT: Final = {
    "seq": 1,
    "type": "video.watched",
    "id": "5c1e7b1e-0d5c-4a44-9a57-1f9c6a1f0001",
    "learner_id": "s-17",
    "learner_home": "Nakuru",
    "object_id": "math/g5/ch02/v03",
    "occurred_at": "2026-11-23T08:12:09.120Z",
    "recorded_at": "2026-11-23T08:12:10+03:00",
    **STAMP,
    "data": {"seconds": 240, "n": [1, 0.5, None, {"a": "é"}]},
    "origin": {"stream": "stream-0", "seq": 7},
}
BARE: Final = {"seq": 2, "type": "note.taken", "occurred_at": "2026-11-23T08:12:09Z"}
BATCHES: Final = [
    {
        "device_id": DEVICE,
        "stream": "9f3c1a7be2d04c55",
        "sent": {"at": "2026-11-23T10:00:00.000Z", **STAMP},
        "agent": "pisync/0.3.0",
        "events": [EVENT, BARE],
    },
    {"device_id": "d", "stream": "s", "events": [BARE, {**BARE, "seq": 4, **STAMP, "clock_synced": True}]},
]
SYNC_EVENTS: Final = [
    {
        "device_id": DEVICE,
        "timestamp": timestamp,
        "total_files_synced": 3,
        "total_errors": errors,
        "internet_speed": 2.5,
        **({"errors": {"dns": 1, "timeout": 2}} if errors else {}),
    }
    for timestamp, errors in (("2026-11-23T10:00:00Z", 0), ("2026-11-23T10:00:00.000+05:45", 3))
]
ENROLLMENTS: Final = [{"code": "ABCD-EFGH-JKMN-PQRS", "device_id": "pibook-0042"}, {"code": "abcd"}]
ACTS: Final[Mapping[type, list[dict[str, Any]]]] = {
    schemas.TokenRequest: [{"scope": "viewer", "label": "Ops", "sites": ["Nakuru"], "expires_in_s": 86_400}],
    schemas.Rotation: [{"overlap_s": 60, "label": "new"}],
    schemas.CodeRequest: [{"uses": 30, "expires_in_s": 3600, "site": "Nakuru", "device_id": "p-1", "label": "a"}],
    schemas.DeviceChanges: [{"site": "Kisumu", "site_since": "2026-11-01T00:00:00Z", "label": "a", "retired": False}],
    schemas.RetentionRequest: [{"older_than_s": 86_400, "dry_run": True}],
}
SQL_INTEGER: Final = range(-(2**63), 2**63)


def shown(value: object) -> Any:
    """Return a value as an answer shows it, checked as strictly as the strictest reader would."""
    text = msgspec.json.encode(value).decode()
    return json.loads(text, parse_int=_whole, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def _whole(digits: str) -> int | str:
    """Read an integer; Python refuses to read more digits than this, which are JSON all the same."""
    return int(digits) if len(digits) < 4000 else digits


def storable(row: msgspec.Struct) -> None:
    """Check that both databases can hold a row's columns."""
    for value in astuple(row):
        if isinstance(value, str):
            assert "\0" not in value, "PostgreSQL has no text with a NUL"
            value.encode()
        elif isinstance(value, int):
            assert value in SQL_INTEGER


def check_refusal(problem: Problem) -> None:
    assert problem.status in (400, 413, 415)
    assert len(problem.detail) < 1000
    shown({"detail": problem.detail})


def check_batch(body: bytes) -> None:
    batch = decode_batch(body, NOON)
    store = MemoryStore()
    (receipt,) = store.run(batch)
    assert isinstance(receipt, Receipt), receipt
    sent = {event.seq for event in batch.events} | {event.seq for event in batch.invalid}
    assert {row["seq"] for row in shown(receipt)["rejected"]} <= sent
    for table in ("devices", "streams", "events", "rejected", "carried", "event_keys"):
        for row in store.rows(table):
            storable(row)
    for event in store.events.values():
        assert shown(event_record((1, *astuple(event))))["seq"] == event.seq
    for device in store.devices.values():
        shown(device_record(device, silent_after_ms=None, incomplete=False, criteria=CRITERIA))


def check_sync_event(body: bytes) -> None:
    event, claimed_ms = decode_sync_event(body)
    store = MemoryStore()
    submission = SyncEvent(
        **{name: getattr(event, name) for name in event.__struct_fields__},
        claimed_ms=claimed_ms,
        received_ms=NOON,
    )
    (stored,) = store.run(submission)
    assert isinstance(stored, StoredSyncEvent), stored
    storable(stored)
    assert shown(sync_event_record(stored))["timestamp"] == event.timestamp
    for device in store.devices.values():
        shown(device_record(device, silent_after_ms=None, incomplete=False, criteria=CRITERIA))


def check_enrollment(body: bytes) -> None:
    enrollment = decode_enrollment(body)
    assert len(token_hash(normalized(enrollment.code))) == len(token_hash("x"))
    shown(enrollment)


def check_act(kind: type) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        act: Any = decode_body(kind, body)
        storable(act)
        assert decode_body(kind, msgspec.json.encode(act)) == act
        shown(act)
        if isinstance(act, schemas.DeviceChanges) and act.site_since is not None:
            change = DeviceChange(device_id="d", at_ms=NOON, site_since_ms=to_ms("site_since", act.site_since))
            assert change.site_since_ms in SQL_INTEGER

    return check


CASES: Final[tuple[tuple[str, list[Any], Callable[[bytes], None], int], ...]] = (
    ("batch", BATCHES, check_batch, 24_000),
    ("sync event", SYNC_EVENTS, check_sync_event, 12_000),
    ("enrollment", ENROLLMENTS, check_enrollment, 6_000),
    *((kind.__name__, samples, check_act(kind), 2_000) for kind, samples in ACTS.items()),
)


@pytest.mark.parametrize(("name", "samples", "check", "count"), CASES, ids=[name for name, *_ in CASES])
def test_body_is_taken_whole_or_refused(
    name: str, samples: list[Any], check: Callable[[bytes], None], count: int
) -> None:
    taken = refused = 0
    for body in Mutator(name, samples).bodies(count):
        try:
            check(body)
            taken += 1
        except Problem as problem:
            check_refusal(problem)
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{error!r} of {body[:2000]!r}") from error
    assert taken > count / 20, "the bodies are nearly right"
    assert refused > count / 20


class Arrived:
    """A body that has come as a whole, as uvicorn tells it."""

    more_body = False

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}


def test_compressed_body_is_read_whole_or_refused() -> None:
    """And what was read is decoded by the same rules."""
    mutator = Mutator("gzip", BATCHES)
    codings = (b"gzip",) * 8 + (b"GZIP ", b"identity", b"deflate", b"gzip, gzip", b"br", b"", b"\xff")
    kinds = (b"application/json",) * 8 + (b"application/json; charset=utf-16", b"text/json", b"", b"Application/JSON")
    read = refused = 0

    async def read_all() -> None:
        nonlocal read, refused
        reader = BodyReader(BodyLimits())
        for body in mutator.bodies(12_000):
            packed = mutator.gzipped(body)
            headers = {b"content-type": mutator.rng.choice(kinds), b"content-encoding": mutator.rng.choice(codings)}
            try:
                plain = await reader.json(headers, Arrived(packed).receive)
                assert len(plain) <= DECODED_BYTES
                read += 1
                check_batch(plain)
            except Problem as problem:
                check_refusal(problem)
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{error!r} of {headers} {packed[:2000]!r}") from error

    asyncio.run(read_all())
    assert read > 2_000
    assert refused > 2_000


CALLS: Final[tuple[tuple[str, str, str, list[Any], int], ...]] = (
    ("POST", "/api/events", "device", BATCHES[:1], 600),
    ("POST", "/api/sync-event", "device", SYNC_EVENTS, 300),
    ("POST", "/api/enroll", "device", ENROLLMENTS, 100),
    ("POST", "/api/tokens", "admin", ACTS[schemas.TokenRequest], 100),
    ("POST", "/api/enrollment-codes", "admin", ACTS[schemas.CodeRequest], 100),
    ("PATCH", f"/api/devices/{DEVICE}", "admin", ACTS[schemas.DeviceChanges], 100),
)
VIEWS: Final = (
    *("/api/events", f"/api/events?device_id={DEVICE}", f"/api/sync-event/device/{DEVICE}/sync-history"),
    *(
        "/api/sync-event/devices/repeated-failures?min_failures=1",
        "/api/devices",
        f"/api/devices/{DEVICE}/completeness",
    ),
    *("/api/tokens", "/api/enrollment-codes", "/metrics"),
)


def test_receiver_answers_every_body_and_shows_what_it_took(tmp_path: Path) -> None:
    """By HTTP and SQLite: no answer is a server error, whatever came before."""
    statuses = Counter[int]()
    with live_receiver(tmp_path) as live:
        for method, path, kind, samples, count in CALLS:
            client = live.client(kind, **{"Content-Type": "application/json"})
            for number, each in enumerate(Mutator(path, samples).bodies(count)):
                # A stream and a key of its own, so that most of them are not conflicts.
                body = each.replace(b"9f3c1a7be2d04c55", b"%016x" % number).replace(b"1f9c6a1f0001", b"%012x" % number)
                answer = client.request(method, path, content=body)
                assert answer.status_code < 500, (answer.text, body[:2000])
                statuses[answer.status_code] += 1
        reader = live.client("admin")
        for path in VIEWS:
            answer = reader.get(path)
            assert answer.status_code == 200, (path, answer.text)
        for media in ("application/x-ndjson", "text/csv"):
            assert len(reader.get("/api/events", headers={"Accept": media}).text.splitlines()) > 100
    assert min(statuses[200], statuses[201], statuses[400]) > 50
