"""Reading pages without SQLite: the same rows that SQLite reads."""

import random
import sqlite3
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pisync_agent.outbox.recovery.log import Frame, checksum, read_log
from pisync_agent.outbox.recovery.sqlite_pages import Pages, record, varint


def make(
    path: Path, *, page_size: int = 4096, rows: int = 60, wal: bool = True, seed: int = 1
) -> list[tuple[object, ...]]:
    """A database of many kinds of values; its connection stays open, so that the log stays. All rows."""
    rng = random.Random(seed)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, i, r, s, b, n)")
        for _ in range(rows):
            size = rng.choice([0, 1, 100, page_size - 40, page_size, 3 * page_size])
            text = "aé🙂\0"[rng.randrange(3) :] * (size // 4)
            integer = rng.choice([0, 1, -1, 127, -128, 2**15, 2**23, -(2**31), 2**47, 2**62, -(2**63)])
            values = (integer, rng.random(), text, rng.randbytes(20), None)
            connection.execute("INSERT INTO t (i, r, s, b, n) VALUES (?, ?, ?, ?, ?)", values)
        connection.execute("DELETE FROM t WHERE id % 5 = 0")
        found = connection.execute("SELECT * FROM t ORDER BY id").fetchall()
        _copy(path)
    return found


def _copy(path: Path) -> None:
    """Keep the files as they are now: closing the connection would write the log back."""
    for ending in ("", "-wal"):
        source = path.with_name(path.name + ending)
        if source.exists():
            path.with_name("copy.db" + ending).write_bytes(source.read_bytes())


def frames(log: Path) -> list[Frame]:
    found = read_log(log)
    return list(found.frames) if found else []


def rows_of(path: Path) -> list[tuple[object, ...]]:
    """The rows of table t (six columns, the first of them the rowid)."""
    with Pages(path) as pages:
        found = [row for number in pages.numbers() for row in pages.rows(number)]
    return sorted((row.rowid, *row.values[1:]) for row in found if len(row.values) == 6 and row.values[0] is None)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("wal", [True, False])
def test_pages_yield_what_sqlite_reads(tmp_path: Path, page_size: int, wal: bool) -> None:
    expected = make(tmp_path / "x.db", page_size=page_size, wal=wal, rows=60)
    assert rows_of(tmp_path / "copy.db") == expected


def test_the_log_is_read_as_sqlite_reads_it(tmp_path: Path) -> None:
    make(tmp_path / "x.db")
    log = tmp_path / "copy.db-wal"
    found = frames(log)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        read = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        assert len(found) == read > 10
    assert all(frame.intact for frame in found)


def test_a_broken_frame_does_not_hide_later_frames(tmp_path: Path) -> None:
    make(tmp_path / "x.db")
    log = tmp_path / "copy.db-wal"
    content = bytearray(log.read_bytes())
    content[32 + 5 * 4120 + 24 + 100] ^= 0xFF
    log.write_bytes(content)
    found = frames(log)
    assert [index for index, frame in enumerate(found) if not frame.intact] == [5]


def test_without_a_header_all_frames_but_the_first_can_be_checked(tmp_path: Path) -> None:
    make(tmp_path / "x.db")
    log = tmp_path / "copy.db-wal"
    whole = frames(log)
    log.write_bytes(bytes(32) + log.read_bytes()[32:])
    found = frames(log)
    assert found[1:] == whole[1:]
    assert found[0] == replace(whole[0], intact=False)


def test_an_old_frame_does_not_complete_a_torn_commit(tmp_path: Path) -> None:
    """The log begins again at its start: where a frame of the torn commit is lost, one of the round before stands."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for _ in range(30):
            connection.execute("INSERT INTO t VALUES (randomblob(3000))")
        _copy(path)
        old = (tmp_path / "copy.db-wal").read_bytes()
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.execute("INSERT INTO t VALUES (randomblob(30000))")
        _copy(path)
    log = tmp_path / "copy.db-wal"
    step = 24 + 4096
    shown = next(at for at in range(32 + step, len(old), step) if old[at + 4 : at + 8] != bytes(4))
    content = log.read_bytes()
    log.write_bytes(content[:shown] + old[shown : shown + step] + content[shown + step :])
    found = frames(log)
    assert not all(frame.intact for frame in found)
    assert [frame.commits for frame in found] == [False] * (len(found) - 1) + [True]


def test_frames_of_an_earlier_round_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for _ in range(30):
            connection.execute("INSERT INTO t VALUES (randomblob(3000))")
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.execute("INSERT INTO t VALUES (1)")
        _copy(path)
    log = tmp_path / "copy.db-wal"
    assert log.stat().st_size > 30 * 4096
    assert 1 <= len(frames(log)) <= 3


def test_uncommitted_frames_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, i, r, s, b, n)")
        connection.execute("INSERT INTO t (i) VALUES ('kept')")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        for _ in range(200):
            connection.execute("INSERT INTO t (i) VALUES (randomblob(2000))")
        _copy(path)
        connection.execute("ROLLBACK")
    assert (tmp_path / "copy.db-wal").stat().st_size > 100 * 4096
    assert [row[1] for row in rows_of(tmp_path / "copy.db")] == ["kept"]


def test_garbage_of_any_kind_is_read_without_an_error(tmp_path: Path) -> None:
    make(tmp_path / "x.db", rows=12)
    rng = random.Random(5)
    whole = {ending: (tmp_path / f"copy.db{ending}").read_bytes() for ending in ("", "-wal")}
    target = tmp_path / "bad.db"
    for _ in range(150):
        for ending, content in whole.items():
            spoiled = bytearray(content)
            for _ in range(rng.choice([1, 10, 300])):
                at = rng.randrange(len(spoiled))
                spoiled[at : at + 4] = rng.choice([rng.randbytes(4), bytes(4), b"\xff" * 4])[: len(spoiled) - at]
            del spoiled[rng.choice([len(spoiled), rng.randrange(len(spoiled))]) :]
            target.with_name(target.name + ending).write_bytes(spoiled)
        rows_of_anything(target)


def rows_of_anything(path: Path) -> int:
    with Pages(path) as pages:
        return sum(1 for number in pages.numbers() for _ in pages.rows(number))


def test_a_loop_of_overflow_pages_ends(tmp_path: Path) -> None:
    """A page that names itself as its continuation."""
    page = bytearray(4096)
    page[0] = 0x0D
    page[3:5] = (1).to_bytes(2, "big")
    page[8:10] = (16).to_bytes(2, "big")
    page[16:20] = b"\x87\xff\xff\x7f"
    for at in range(20, 4096, 4):
        page[at : at + 4] = (2).to_bytes(4, "big")
    (tmp_path / "x.db").write_bytes(b"SQLite format 3\0" + struct.pack(">H", 4096) + bytes(4078) + bytes(page))
    assert rows_of_anything(tmp_path / "x.db") == 0


def test_numbers_of_variable_length() -> None:
    assert varint(b"\x00", 0) == (0, 1)
    assert varint(b"\x81\x00", 0) == (128, 2)
    assert varint(b"\xff" * 9, 0) == (2**64 - 1, 9)
    with pytest.raises(IndexError):
        varint(b"\x81", 0)


def test_a_row_must_fill_its_bytes() -> None:
    assert record(b"\x03\x08\x09") == (0, 1)
    with pytest.raises(ValueError, match="fill"):
        record(b"\x02\x08extra")
    with pytest.raises(ValueError, match="truncated"):
        record(b"\x02\x17ab")


def test_the_checksum_is_the_one_of_the_file_format() -> None:
    assert checksum(bytes(8), "<", (0, 0)) == (0, 0)
    assert checksum(struct.pack("<4I", 1, 2, 3, 4), "<", (0, 0)) == (1 + 3 + 3, 3 + 4 + 7)


def test_a_missing_file_has_no_pages(tmp_path: Path) -> None:
    assert rows_of_anything(tmp_path / "none.db") == 0
    assert frames(tmp_path / "none.db-wal") == []
