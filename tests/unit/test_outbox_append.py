"""Recording into the outbox, and reading what was recorded."""

import json
import sqlite3
import threading
from pathlib import Path

import pytest

from pisync_agent.errors import InvalidEvent, OutboxFull, StoreUnusable
from pisync_agent.outbox.models import CHECKED
from pisync_agent.outbox.reader import OutboxReader
from pisync_common.sqlite import connect
from tests.support.outboxes import (
    Faults,
    bodies,
    deliver,
    event,
    events,
    opened,
    receipt,
    seqs,
    sqlite_error,
)


def test_events_are_numbered_from_one_without_gaps(tmp_path: Path) -> None:
    with_outbox = opened(tmp_path)
    assert with_outbox.append(events(3)) == [1, 2, 3]
    assert with_outbox.append(events(2)) == [4, 5]
    with_outbox.close()
    again = opened(tmp_path)
    assert again.stream == with_outbox.stream
    assert again.append(events(1)) == [6]
    assert seqs(again) == [1, 2, 3, 4, 5, 6]
    assert [json.loads(body)["seq"] for body in bodies(again)] == [1, 2, 3, 4, 5, 6]
    again.close()


def test_numbering_continues_after_every_event_was_trimmed(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(5))
    deliver(outbox, 5)
    outbox._trim(0)
    assert seqs(outbox) == []
    outbox.close()
    outbox = opened(tmp_path)
    assert outbox.append(events(1)) == [6]
    assert outbox.state().kept_from == 6
    outbox.close()


def test_commits_are_durable_and_another_mode_is_refused(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert outbox._file.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert outbox._file.connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    outbox.close()

    class NeverFull:
        def __init__(self, path: Path, *, readonly: bool) -> None:
            self.inner = connect(path, readonly=readonly)
            self.close = self.inner.close
            self.executemany = self.inner.executemany

        def execute(self, sql: str, parameters: tuple[object, ...] = (), /) -> object:
            return self.inner.execute(sql.replace("synchronous = FULL", "synchronous = NORMAL"), parameters)

    with pytest.raises(StoreUnusable, match="power cut"):
        opened(tmp_path, connect=NeverFull)  # type: ignore[arg-type]


def test_the_same_id_is_stored_once(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert outbox.append([event(1, id="k")]) == [1]
    assert outbox.append([event(9), event(1, id="k"), event(1, id="k2"), event(1, id="k2")]) == [2, 1, 3, 3]
    assert seqs(outbox) == [1, 2, 3]
    outbox.close()


def test_an_id_with_other_content_is_rejected_and_its_neighbours_stored(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    first, second, third = outbox.append([event(1, id="k"), event(2, id="k"), event(3)])
    assert (first, third) == (1, 2)
    assert isinstance(second, InvalidEvent)
    assert "event 1" in str(second)
    outbox.close()


def test_a_retried_event_is_found_by_its_attempt(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1, attempt=77), event(2, attempt=78), event(3)])
    again = [event(2, attempt=78, retried=True), event(5, attempt=80, retried=True), event(1, attempt=77, retried=True)]
    assert outbox.append(again) == [2, 4, 1]
    assert outbox.append(again) == [2, 4, 1]
    assert seqs(outbox) == [1, 2, 3, 4]
    outbox.close()


def test_a_first_attempt_is_never_matched_with_an_earlier_event(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert outbox.append([event(1, attempt=77), event(2, attempt=77)]) == [1, 2]
    outbox.close()


def test_a_batch_is_bounded_in_events_and_bytes_but_never_empty(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(10, size=1000))
    size = len(bodies(outbox)[0].encode()) + 1
    assert len(outbox.read(0, max_events=4, max_bytes=10**6)) == 4
    assert len(outbox.read(0, max_events=100, max_bytes=3 * size)) == 3
    assert len(outbox.read(0, max_events=100, max_bytes=1)) == 1
    assert [seq for seq, _ in outbox.read(8, max_events=100, max_bytes=10**6)] == [9, 10]
    assert outbox.read(10, max_events=100, max_bytes=10**6) == []
    outbox.close()


def test_batch_bytes_are_counted_in_utf8(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(data={"text": "é" * 1000}), event(data={"text": "é" * 1000})])
    assert len(outbox.read(0, max_events=9, max_bytes=3000)) == 1
    outbox.close()


def test_reading_an_ended_stream_returns_nothing(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(2))
    old = outbox.stream
    assert len(outbox.read(0, max_events=9, max_bytes=10**6, stream=old)) == 2
    outbox.start_new_stream("conflict")
    assert outbox.read(0, max_events=9, max_bytes=10**6, stream=old) == []
    assert len(outbox.read(0, max_events=9, max_bytes=10**6, stream=outbox.stream)) == 2
    outbox.close()


def test_a_failing_disk_is_not_a_broken_file(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)
    outbox.append(events(3))

    def broken(sql: str) -> None:
        if sql == "COMMIT":
            raise sqlite_error(sqlite3.OperationalError, "disk I/O error", "SQLITE_IOERR_WRITE")

    faults.fault = broken
    with pytest.raises(StoreUnusable, match="nothing was recorded"):
        outbox.append(events(1))
    faults.fault = lambda sql: None
    assert outbox.append(events(1)) == [4]
    assert outbox.state().salvaged == ()
    outbox.close()


def test_many_threads_record_at_once(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    found: list[int] = []

    def work() -> None:
        for _ in range(20):
            found.extend(seq for seq in outbox.append(events(2)) if isinstance(seq, int))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 321)) == seqs(outbox)
    outbox.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("SQLITE_READONLY", StoreUnusable), ("SQLITE_IOERR_FSYNC", StoreUnusable), ("SQLITE_FULL", OutboxFull)],
)
def test_check_writable_commits(tmp_path: Path, name: str, kind: type[Exception]) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)
    outbox.check_writable()
    assert outbox.note(CHECKED)

    def fail(sql: str) -> None:
        if sql == "COMMIT":
            raise sqlite_error(sqlite3.OperationalError, "it fails", name)

    faults.fault = fail
    with pytest.raises(kind):
        outbox.check_writable()
    outbox.close()


def test_a_closed_outbox_raises(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.close()
    outbox.close()
    with pytest.raises(StoreUnusable, match="closed"):
        outbox.append(events(1))


def test_notes_are_kept(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert outbox.note("last_run") is None
    outbox.set_note("last_run", "one")
    outbox.set_note("last_run", "two")
    outbox.close()
    outbox = opened(tmp_path)
    assert outbox.note("last_run") == "two"
    outbox.close()


# Looking from another process


def test_a_reader_sees_what_is_committed_while_another_writes(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(4))
    outbox.settle(receipt(outbox, 2, rejected=[(2, "invalid_event")]), [1, 2])
    with OutboxReader(tmp_path) as reader:
        assert reader.state().waiting == 2
        assert [(seq, state) for seq, _, state in reader.list_events(0, 10)] == [
            (1, "delivered"),
            (2, "dead"),
            (3, "waiting"),
            (4, "waiting"),
        ]
        assert len(reader.list_events(0, 10)) == 4
        assert [letter.seq for letter in reader.dead_letters()] == [2]
        outbox.append(events(1))
        assert reader.state().last_seq == 4, "a reader sees one moment"
    with OutboxReader(tmp_path) as reader:
        assert json.loads(reader.event(5) or "")["seq"] == 5
        assert reader.event(6) is None
        assert reader.note("none") is None
    outbox.close()


def test_a_reader_never_writes(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.close()
    with OutboxReader(tmp_path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM events")


def test_a_reader_of_a_broken_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnusable, match=r"the file is damaged.*nothing was changed.*pisync run"):
        OutboxReader(tmp_path)
