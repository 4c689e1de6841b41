"""What the receiver takes in."""

import gzip
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark import load
from benchmark.lessons import MORNING_MS, lessons
from benchmark.measure import Bench, median
from benchmark.noop import PATH
from benchmark.processes import Receiver, receiver
from benchmark.report import Result, at_least, at_most, progress
from benchmark.yardsticks import SameRows
from pisync_common.rules import encode_data
from pisync_common.times import format_ms
from pisync_common.wire import encode_batch, encode_event

SYNC_EVENT = "/api/sync-event"
CONNECTIONS = 100
MOST_A_SECOND = 20_000
"""More requests than are sent in a second, so that no report is sent twice."""
BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Loads:
    """The rounds of one kind of request."""

    rounds: list[load.Load]

    @property
    def rate(self) -> float:
        return median([one.rate for one in self.rounds])

    @property
    def p99_ms(self) -> float:
        return median([one.p99_ms for one in self.rounds])

    def shown(self) -> str:
        return f"{self.rate:,.0f}/s p99 {self.p99_ms:.1f} ms"


def sync_events(bench: Bench) -> Iterator[Result]:
    """`POST /api/sync-event` beside the no-op route, and failures of 1,000 devices beside it."""
    folder = bench.place("sync-events")
    with receiver(folder) as cloud:
        yield from report_figures(bench, folder, cloud, lambda: _stored(cloud))


def report_figures(bench: Bench, folder: Path, cloud: Receiver, stored_by_now: Callable[[], int]) -> Iterator[Result]:
    """The three figures of one receiver; `stored_by_now` counts its sync events."""
    tokens = cloud.enroll([f"pibook-{number:04}" for number in range(1000)])
    few = dict(list(tokens.items())[:CONNECTIONS])
    kinds = {"noop": (PATH, few), "stored": (SYNC_EVENT, few), "failing": (SYNC_EVENT, tokens)}
    rounds: dict[str, list[load.Load]] = {kind: [] for kind in kinds}
    seconds = bench.pick(5, 2)
    at_s = itertools.count(step=seconds * MOST_A_SECOND)
    for number in range(bench.pick(7, 3)):
        for kind, (target, devices) in kinds.items():
            progress(f"sync-event: round {number + 1}, {kind}")
            what = reports(devices, seconds * MOST_A_SECOND, first_s=next(at_s), failing=kind == "failing")
            before = stored_by_now()
            one = load.posts(
                folder, port=cloud.port, target=target, what=what, connections=CONNECTIONS, seconds=seconds
            )
            _check(one, stored=stored_by_now() - before, expected=target == SYNC_EVENT)
            rounds[kind].append(one)
    noop, stored, failing = (Loads(rounds=rounds[kind]) for kind in kinds)
    yield at_least(
        "POST /api/sync-event, 100 connections | no-op JSON POST", stored.shown(), noop.shown(),
        stored.rate / noop.rate, 0.60,
    )  # fmt: skip
    yield at_most("  its p99", f"{stored.p99_ms:.1f} ms", f"{noop.p99_ms:.1f} ms", stored.p99_ms / noop.p99_ms, 3)
    yield at_least(
        "  every one a failure, 1,000 devices | the row above", failing.shown(), stored.shown(),
        failing.rate / stored.rate, 0.90,
    )  # fmt: skip


def reports(tokens: dict[str, str], count: int, *, first_s: int, failing: bool) -> list[load.Post]:
    """Sync events, one a second, the devices taking turns."""
    devices = list(tokens.items())
    return [
        load.Post(token=token, body=_report(device, MORNING_MS + (first_s + number) * 1000, failing=failing))
        for number in range(count)
        for device, token in [devices[number % len(devices)]]
    ]


def _report(device_id: str, at_ms: int, *, failing: bool) -> str:
    report: dict[str, object] = {
        "device_id": device_id,
        "timestamp": format_ms(at_ms),
        "total_files_synced": 0 if failing else at_ms % 90,
        "total_errors": 2 if failing else 0,
        "internet_speed": 1.25,
    }
    return json.dumps(report, separators=(",", ":"))


def _stored(cloud: Receiver) -> int:
    with _reading(cloud) as database:
        (count,) = database.execute("SELECT count(*) FROM sync_events").fetchone()
    database.close()
    return int(count)


def _reading(cloud: Receiver) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{cloud.database}?mode=ro", uri=True)


def _check(one: load.Load, *, stored: int, expected: bool) -> None:
    """Every request answered 2xx, and each is a row. What was under way at the end may be stored, too."""
    if one.failed:
        raise RuntimeError(f"{one.failed} of {one.requests} requests failed")
    if expected and not one.requests <= stored <= one.requests + CONNECTIONS:
        raise RuntimeError(f"{one.requests} requests were answered 201, but {stored} are stored")


def batches(bench: Bench) -> Iterator[Result]:
    """`POST /api/events` beside bare SQLite inserting the same rows."""
    _, result = batch_intake(bench)
    yield result


def batch_intake(bench: Bench) -> tuple[float, Result]:
    """Events a second over 4 connections, and the result."""
    folder = bench.place("batches")
    taken, bare = [], []
    with receiver(folder) as cloud:
        tokens = cloud.enroll([f"pibox-{number}" for number in range(4)])
        same = SameRows(cloud.database, "events", folder / "bare.db")
        each = bench.pick(40, 20)
        for number in range(bench.pick(7, 3)):
            progress(f"batches: round {number + 1}")
            requests = [
                [batch_request(device, token, number * each + batch) for batch in range(each)]
                for device, token in tokens.items()
            ]
            one = load.batches(folder, port=cloud.port, per_connection=requests)
            rows = same.new_rows()
            expected = each * BATCH * len(tokens)
            if one.failed or len(rows) != expected:
                raise RuntimeError(f"{one.failed} batches failed; {len(rows)} rows of {expected} are stored")
            taken.append(one.rate * BATCH)
            bare.append(same.rate(rows))
        same.close()
    value, yardstick = median(taken), median(bare)
    result = at_least(
        "POST /api/events, batches of 500, gzip, 4 conn. | bare sqlite3", f"{value:,.0f} events/s",
        f"{yardstick:,.0f} rows/s", value / yardstick, 0.50,
    )  # fmt: skip
    return value, result


def batch_request(device_id: str, token: str, number: int) -> bytes:
    """Batch `number` of a device, as the agent would send it."""
    first = number * BATCH + 1
    day = list(lessons(BATCH, seed=hash((device_id, number)) % 2**32))
    events = [
        encode_event(
            seq=first + offset,
            type=lesson.type,
            stamp=lesson.stamp,
            learner_id=lesson.learner_id,
            object_id=lesson.object_id,
            data=encode_data(lesson.data),
        )
        for offset, lesson in enumerate(day)
    ]
    body = encode_batch(
        device_id=device_id, stream=f"stream-{device_id}", sent=day[-1].stamp, agent="pisync/bench", events=events
    )
    return load.raw_request("/api/events", token, gzip.compress(body, 6), gzipped=True)
