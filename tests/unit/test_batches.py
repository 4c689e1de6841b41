"""Batches made ready: what is in them, how large they are, and what is packed ahead."""

import gzip
import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from pisync_agent.sync.batches import Batch, BatchSize, Packer, Prefetcher
from pisync_common.limits import BODY_BYTES, KIB
from pisync_common.wire import dumps, encode_batch
from tests.support.outboxes import STAMP


class Rows:
    """Events 1 to n of a made-up outbox."""

    def __init__(self, texts: list[str], *, stream: str = "s1") -> None:
        self.texts = texts
        self.stream = stream
        self.reads: list[tuple[int, int, int]] = []
        self.threads: set[str] = set()

    def read(self, after: int, *, max_events: int, max_bytes: int, stream: str | None = None) -> list[tuple[int, str]]:
        self.reads.append((after, max_events, max_bytes))
        self.threads.add(threading.current_thread().name)
        if stream != self.stream:
            return []
        rows: list[tuple[int, str]] = []
        size = 0
        for seq, text in enumerate(self.texts[after : after + max_events], after + 1):
            size += len(text) + 1
            if rows and size > max_bytes:
                break
            rows.append((seq, text))
        return rows


def texts(count: int, *, size: int = 100) -> list[str]:
    return [dumps({"seq": seq, "pad": "x" * size}) for seq in range(1, count + 1)]


def packer(rows: Rows) -> Packer:
    return Packer(rows, device_id="pibook-1", stream="s1", agent="pisync/0")


def seqs_of(body: bytes) -> list[int]:
    return [event["seq"] for event in json.loads(gzip.decompress(body))["events"]]


def test_a_batch_has_the_wire_format_and_the_time_of_sending() -> None:
    rows = Rows(texts(3))
    batch = packer(rows).pack(0, max_events=10, max_bytes=10_000)
    assert batch is not None

    body = batch.sealed(replace(STAMP, at_ms=7))

    assert gzip.decompress(body) == encode_batch(
        device_id="pibook-1", stream="s1", sent=replace(STAMP, at_ms=7), agent="pisync/0", events=rows.texts
    )
    assert (batch.seqs, batch.last, batch.stream) == ([1, 2, 3], 3, "s1")
    assert batch.size == len(",".join(rows.texts))


def test_the_same_events_make_the_same_bytes() -> None:
    first, second = (packer(Rows(texts(3))).pack(0, max_events=10, max_bytes=10_000) for _ in range(2))

    assert first is not None
    assert second is not None
    assert first.sealed(STAMP) == second.sealed(STAMP)


def test_the_size_is_in_bytes_not_in_characters() -> None:
    batch = packer(Rows([dumps({"seq": 1, "text": "ünïcödé"})])).pack(0, max_events=1, max_bytes=1)

    assert batch is not None
    assert batch.size == len(dumps({"seq": 1, "text": "ünïcödé"}).encode())


def test_a_batch_without_events_is_a_probe() -> None:
    body = json.loads(gzip.decompress(packer(Rows([])).of([]).sealed(STAMP)))

    assert body["events"] == []
    assert body["stream"] == "s1"


@pytest.mark.parametrize(("stream", "count"), [("s1", 0), ("s2", 3)])
def test_without_events_there_is_no_batch(stream: str, count: int) -> None:
    assert packer(Rows(texts(count), stream=stream)).pack(0, max_events=10, max_bytes=10_000) is None


def noise(count: int, *, size: int) -> list[str]:
    """Events that do not compress."""
    chance = random.Random(7)
    return [dumps({"seq": seq, "pad": chance.randbytes(size // 2).hex()}) for seq in range(1, count + 1)]


def test_a_body_over_the_limit_is_split_until_it_fits() -> None:
    rows = Rows(noise(60, size=40 * KIB))
    batch = packer(rows).pack(0, max_events=1000, max_bytes=10**9)

    assert batch is not None
    assert batch.seqs == list(range(1, 31))
    assert len(batch.sealed(STAMP)) <= BODY_BYTES


@pytest.fixture
def rows() -> Rows:
    return Rows(texts(10))


@pytest.fixture
def size() -> BatchSize:
    size = BatchSize()
    size.events = 4
    return size


@pytest.fixture
def ahead(rows: Rows, size: BatchSize) -> Iterator[Prefetcher]:
    with closing(Prefetcher(packer(rows), size)) as ahead:
        yield ahead


def taken(batch: Batch | None) -> list[int]:
    return [] if batch is None else batch.seqs


def test_a_prefetched_batch_is_used(ahead: Prefetcher, rows: Rows) -> None:
    ahead.prepare(4)

    assert taken(ahead.take(4)) == [5, 6, 7, 8]
    assert len(rows.reads) == 1
    assert all(name.startswith("pack") for name in rows.threads)


def test_batches_follow_one_another_to_the_end(ahead: Prefetcher) -> None:
    seen, after = [], 0
    while (batch := ahead.take(after)) is not None:
        ahead.prepare(batch.last)
        seen.append(batch.seqs)
        after = batch.last

    assert seen == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_batch_prefetched_for_another_position_is_packed_again(ahead: Prefetcher) -> None:
    ahead.prepare(4)

    assert taken(ahead.take(2)) == [3, 4, 5, 6]


def test_a_prefetched_batch_that_is_now_too_large_is_packed_again(ahead: Prefetcher, size: BatchSize) -> None:
    ahead.prepare(4)
    size.events = 2

    assert taken(ahead.take(4)) == [5, 6]


def test_events_recorded_meanwhile_are_found(ahead: Prefetcher, rows: Rows) -> None:
    ahead.prepare(10)
    assert ahead.take(10) is None

    ahead.prepare(10)
    while len(rows.reads) < 3:
        pass
    rows.texts += texts(11)[10:]

    assert taken(ahead.take(10)) == [11]


def test_an_error_while_prefetching_is_raised_when_the_batch_is_taken(ahead: Prefetcher, rows: Rows) -> None:
    rows.texts = None  # type: ignore[assignment]
    ahead.prepare(4)

    with pytest.raises(TypeError):
        ahead.take(4)
