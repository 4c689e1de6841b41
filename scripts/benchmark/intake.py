"""What the receiver takes in, on each engine."""

import gzip
import itertools
import json
import sqlite3
from collections.abc import Iterator
from statistics import median
from typing import Final

import psycopg

from benchmark import load
from benchmark.apps import NOOP
from benchmark.lessons import MORNING_MS, lessons
from benchmark.processes import bare_server, database, receiver
from benchmark.report import Bench, Result, at_least, progress
from benchmark.yardsticks import PostgresRows, SameRows, SqliteRows
from pisync_common.rules import encode_data
from pisync_common.times import format_ms
from pisync_common.wire import encode_batch, encode_event

SYNC_EVENT: Final = "/api/sync-event"
CONNECTIONS: Final = 100
MOST_A_SECOND: Final = 20_000
"""More requests than are sent in a second, so that no sync event is sent twice."""
BATCH: Final = 500
NAMES: Final = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
NOOP_TARGET: Final = 0.65
BARE_TARGET: Final = 0.40
BATCH_TARGETS: Final = {"sqlite": 0.45, "postgres": 0.65}


def posts(bench: Bench, engine: str) -> Iterator[Result]:
    """`POST /api/sync-event` by one device over 100 connections beside the no-op and the bare function."""
    folder = bench.place(f"post-{engine}")
    with database(engine, folder) as url, receiver(folder, url) as cloud, bare_server(folder) as bare_port:
        ((device, token),) = cloud.enroll(["pibook-0001"]).items()
        targets = {"stored": (cloud.port, SYNC_EVENT), "noop": (cloud.port, NOOP), "bare": (bare_port, "/")}
        rounds: dict[str, list[load.Load]] = {kind: [] for kind in targets}
        seconds = bench.pick(5, 2)
        at_s = itertools.count(step=seconds * MOST_A_SECOND)
        for number in range(bench.pick(7, 3)):
            for kind, (port, target) in targets.items():
                progress(f"post, {NAMES[engine]}: round {number + 1}, {kind}")
                requests = sync_events(target, device, token, seconds * MOST_A_SECOND, first_s=next(at_s))
                before = stored_sync_events(url)
                seen = load.repeat(folder, [port], requests, connections=CONNECTIONS, seconds=seconds)
                _check(seen, stored=stored_sync_events(url) - before, expected=kind == "stored")
                rounds[kind].append(seen)
    rates = {kind: median(seen.rate for seen in all_seen) for kind, all_seen in rounds.items()}
    shown = {
        kind: f"{rates[kind]:,.0f}/s p99 {median(seen.p99_ms for seen in all_seen):.1f} ms"
        for kind, all_seen in rounds.items()
    }
    for kind, what, least in (
        ("noop", f"{NAMES[engine]}: POST /api/sync-event | no-op POST", NOOP_TARGET),
        ("bare", f"{NAMES[engine]}: POST /api/sync-event | bare ASGI function", BARE_TARGET),
    ):
        yield at_least(what, shown["stored"], shown[kind], rates["stored"] / rates[kind], least)


def sync_events(target: str, device_id: str, token: str, count: int, *, first_s: int) -> list[bytes]:
    """Return requests with sync events of a device, one a second."""
    return [
        load.request("POST", target, token, sync_event(device_id, MORNING_MS + (first_s + number) * 1000))
        for number in range(count)
    ]


def sync_event(device_id: str, at_ms: int) -> bytes:
    fields = {
        "device_id": device_id,
        "timestamp": format_ms(at_ms),
        "total_files_synced": at_ms % 90,
        "total_errors": 0,
        "internet_speed": 1.25,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def stored_sync_events(url: str) -> int:
    query = "SELECT count(*) FROM sync_events"
    if url.startswith("sqlite"):
        connection = sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True)
        (count,) = connection.execute(query).fetchone()
        connection.close()
    else:
        with psycopg.connect(url) as asking:
            (count,) = asking.execute(query).fetchone() or (0,)
    return int(count)


def _check(seen: load.Load, *, stored: int, expected: bool) -> None:
    """Raise RuntimeError unless each answered request is a row; those under way at the end may be stored, too."""
    seen.check()
    if expected and not seen.requests <= stored <= seen.requests + CONNECTIONS:
        raise RuntimeError(f"{seen.requests} requests were answered, but {stored} are stored")


def batches(bench: Bench, engine: str) -> Iterator[Result]:
    """`POST /api/events` in batches of 500 beside the database inserting the same rows."""
    _, result = batch_rate(bench, engine)
    yield result


def batch_rate(bench: Bench, engine: str) -> tuple[float, Result]:
    """Return events a second over 4 connections, and the result."""
    folder = bench.place(f"batches-{engine}")
    taken, bare = [], []
    with database(engine, folder) as url, receiver(folder, url) as cloud:
        tokens = cloud.enroll([f"pibox-{number}" for number in range(4)])
        same = _same_rows(url)
        each = bench.pick(40, 20)
        for number in range(bench.pick(7, 3)):
            progress(f"batches, {NAMES[engine]}: round {number + 1}")
            requests = [
                [batch(device, token, number * each + place) for place in range(each)]
                for device, token in tokens.items()
            ]
            seen = load.once(folder, cloud.port, requests)
            rows, expected = same.load(), each * BATCH * len(tokens)
            if rows != expected:
                raise RuntimeError(f"{rows} rows of {expected} are stored")
            taken.append(seen.rate * BATCH)
            bare.append(same.rate())
        same.close()
    value, yardstick = median(taken), median(bare)
    return value, at_least(
        f"{NAMES[engine]}: batches of 500, gzip, 4 connections | bare {'sqlite3' if engine == 'sqlite' else 'psycopg'}",
        f"{value:,.0f} events/s", f"{yardstick:,.0f} rows/s", value / yardstick, BATCH_TARGETS[engine],
    )  # fmt: skip


def _same_rows(url: str) -> SameRows:
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        return SqliteRows(path, path.replace("receiver.db", "bare.db"))
    return PostgresRows(url)


def batch(device_id: str, token: str, number: int) -> bytes:
    """Return batch `number` of a device as the agent sends it."""
    day = list(lessons(BATCH, seed=hash((device_id, number)) % 2**32))
    events = [
        encode_event(
            seq=seq,
            type=lesson.type,
            stamp=lesson.stamp,
            learner_id=lesson.learner_id,
            object_id=lesson.object_id,
            data=encode_data(lesson.data),
        )
        for seq, lesson in enumerate(day, number * BATCH + 1)
    ]
    body = encode_batch(
        device_id=device_id, stream=f"stream-{device_id}", sent=day[-1].stamp, agent="pisync/bench", events=events
    )
    return load.request("POST", "/api/events", token, gzip.compress(body, 6), "Content-Encoding: gzip")
