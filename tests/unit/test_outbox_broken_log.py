"""Holes, cuts and exchanges in the outbox's log: every event on an intact page is carried, none invented or changed."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from pisync_agent.outbox.database import PAGE_BYTES
from pisync_agent.outbox.numbers import Numbers
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.outbox.recovery.log import committed_by_index, read_log
from tests.support.outboxes import bodies, dead_letters, deliver, event, opened, receipt, seqs

PAGE = PAGE_BYTES
FRAME = 24 + PAGE
SECTOR = 512
FILES = ("outbox.db", "outbox.db-wal", "outbox.db-shm")
LAST = 70

Place = tuple[str, int]
"""A page: the file, and where it begins."""


def pad(number: int) -> str:
    """A text of its own for each event; some go on in other pages."""
    return random.Random(number).randbytes(4500 if number % 13 == 0 else 100).hex()


def record(outbox: Outbox, first: int, last: int) -> None:
    for number in range(first, last + 1):
        id = f"key-{number}" if number % 5 == 0 else None
        outbox.append([event(number, data={"n": number, "pad": pad(number)}, id=id)])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 events, 20 delivered; 41 to 70 in the log, behind them frames of the round before; as SIGKILL leaves it."""
    outbox = opened(tmp_path_factory.mktemp("running"), random_hex=lambda size: "a" * 2 * size)
    record(outbox, 1, 40)
    deliver(outbox, 20)
    write_back(outbox)
    record(outbox, 41, LAST)
    copy = copied(outbox.path.parent, tmp_path_factory.mktemp("killed") / "home")
    outbox.close()
    return copy


def write_back(outbox: Outbox) -> None:
    outbox._file.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def copied(source: Path, target: Path, *, index: bool = True) -> Path:
    target.mkdir(exist_ok=True)
    for name in FILES if index else FILES[:2]:
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target


def content(home: Path, place: Place) -> bytes:
    with (home / place[0]).open("rb") as file:
        file.seek(place[1])
        return file.read(PAGE)


@pytest.fixture(scope="module")
def places(killed: Path) -> Mapping[int, list[list[Place]]]:
    """For each pending event, the sets of pages of which one set is enough to read it."""
    log = read_log(killed / "outbox.db-wal")
    assert log is not None
    assert (killed / "outbox.db-wal").stat().st_size > 32 + (log.committed + 10) * FRAME, "no older round behind it"
    pages = [("outbox.db", at) for at in range(0, (killed / "outbox.db").stat().st_size, PAGE)]
    pages += [("outbox.db-wal", frame.offset) for frame in log.frames[: log.committed]]
    held = {place: content(killed, place) for place in pages}
    found = {}
    for number in range(21, LAST + 1):
        text = pad(number).encode()
        if len(text) < 1000:
            whole = b'"n":%d,"pad":"%s"}}' % (number, text)
            head = b'{"seq":%d,' % number
            found[number] = [[place] for place in pages if whole in held[place] and head in held[place]]
        else:
            parts = [text[at : at + 64] for at in range(0, len(text) - 64, 64)]
            parts.append(b'{"seq":%d,' % number)
            found[number] = [[place for place in pages if any(part in held[place] for part in parts)]]
        assert found[number]
        assert all(found[number])
    return found


def intact(places: Mapping[int, list[list[Place]]], before: Path, after: Path) -> set[int]:
    same: dict[Place, bool] = {}

    def kept(place: Place) -> bool:
        if place not in same:
            same[place] = content(before, place) == content(after, place)
        return same[place]

    return {number for number, sets in places.items() if any(all(map(kept, pages)) for pages in sets)}


def overwrite(path: Path, at: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)


def check(home: Path, expected: set[int]) -> Outbox:
    """Open it; every expected event is there, once, as it was recorded, and it works on."""
    outbox = opened(home)
    for _ in range(2):  # damage that shows only later
        outbox.read(0, max_events=10**6, max_bytes=10**9)
    carried = [json.loads(body) for body in bodies(outbox, outbox.delivered)]
    found = [each["data"]["n"] for each in carried]
    assert expected <= set(found)
    assert len(found) == len(set(found))
    for each in carried:
        assert each["data"]["pad"] == pad(each["data"]["n"])
        if "origin" in each:
            assert each["origin"] == {"stream": "a" * 16, "seq": each["data"]["n"]}
    (new,) = outbox.append([event(99)])
    assert new == outbox.state().last_seq
    return outbox


def reason(outbox: Outbox) -> str:
    (salvaged,) = outbox.state().salvaged
    return salvaged.reason


# The kinds, one by one


def test_a_zeroed_first_sector_hides_no_event(killed: Path, tmp_path: Path) -> None:
    home = copied(killed, tmp_path / "home", index=False)
    overwrite(home / "outbox.db-wal", 0, bytes(SECTOR))
    outbox = check(home, set(range(21, LAST + 1)))
    assert f"the log's header is destroyed; the newest event found is {LAST}" in reason(outbox)
    assert "events recorded after it may be missing" in reason(outbox)
    assert "cannot be read" not in reason(outbox)
    outbox.close()


def test_without_both_headers_the_page_size_is_found(killed: Path, tmp_path: Path) -> None:
    home = copied(killed, tmp_path / "home", index=False)
    overwrite(home / "outbox.db-wal", 0, bytes(SECTOR))
    overwrite(home / "outbox.db", 0, bytes(SECTOR))
    check(home, set(range(21, LAST + 1))).close()


@pytest.mark.parametrize("page_size", [512, 1024, 65536])
def test_the_page_size_is_found_by_the_spacing_of_frames(tmp_path: Path, page_size: int) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for _ in range(10):
            connection.execute("INSERT INTO t VALUES (zeroblob(700))")
        log = tmp_path / "copy-wal"
        log.write_bytes(bytes(SECTOR) + (tmp_path / "x.db-wal").read_bytes()[SECTOR:])
    found = read_log(log)
    assert found is not None
    assert found.page_size == page_size


@pytest.mark.parametrize("frame", [1, 5, 20])
@pytest.mark.parametrize("part", ["header", "content", "whole"])
def test_a_hole_in_the_middle_keeps_the_frames_on_both_sides(
    killed: Path, places: Mapping[int, list[list[Place]]], tmp_path: Path, frame: int, part: str
) -> None:
    home = copied(killed, tmp_path / "home", index=False)
    start, length = {"header": (0, 24), "content": (24 + SECTOR, SECTOR), "whole": (0, FRAME)}[part]
    overwrite(home / "outbox.db-wal", 32 + frame * FRAME + start, b"\xff" * length)
    outbox = check(home, intact(places, killed, home))
    assert len(outbox.state().salvaged) == 1
    outbox.close()


def test_an_older_round_does_not_return(killed: Path, tmp_path: Path) -> None:
    """Nothing of the present round is left in the log: what is, was written back to the file long ago."""
    log = read_log(killed / "outbox.db-wal")
    assert log is not None
    home = copied(killed, tmp_path / "home", index=False)
    overwrite(home / "outbox.db-wal", 0, bytes(32 + log.committed * FRAME))
    outbox = check(home, set(range(21, 41)))
    assert min(json.loads(body)["data"]["n"] for body in bodies(outbox)) == 21, "delivered events stay delivered"
    assert "events recorded after it may be missing" in reason(outbox)
    outbox.close()


def test_an_older_round_does_not_stand_over_newer_pages(tmp_path: Path) -> None:
    """A dead letter of the round before was requeued since: it stays requeued."""
    outbox = opened(tmp_path / "running", random_hex=lambda size: "a" * 2 * size)
    record(outbox, 1, 40)
    outbox.settle(receipt(outbox, 3, rejected=[(3, "invalid_event")]), [1, 2, 3])
    write_back(outbox)
    assert outbox.requeue(3) == 41
    write_back(outbox)
    record(outbox, 42, 42)
    home = copied(tmp_path / "running", tmp_path / "home", index=False)
    outbox.close()
    log = read_log(home / "outbox.db-wal")
    assert log is not None
    overwrite(home / "outbox.db-wal", 0, bytes(32 + log.committed * FRAME))
    outbox = opened(home)
    assert dead_letters(outbox) == []
    assert [json.loads(body)["data"]["n"] for body in bodies(outbox)] == [*range(4, 41), 3]
    outbox.close()


def test_the_log_of_an_older_round_does_not_hide_newer_events(tmp_path: Path) -> None:
    """A log from a copy made earlier, put beside the newer database: SQLite itself would read it over the file."""
    running = opened(tmp_path / "running", random_hex=lambda size: "a" * 2 * size)
    record(running, 1, 30)
    old = (tmp_path / "running" / "outbox.db-wal").read_bytes()
    record(running, 31, 60)
    running.close()
    home = copied(tmp_path / "running", tmp_path / "home")
    (home / "outbox.db-wal").write_bytes(old)
    outbox = check(home, set(range(1, 61)))
    assert "the log is cut or old: it ends at event 30, the file without it at event 60" in reason(outbox)
    outbox.close()


def test_a_log_cut_behind_what_was_written_back_hides_no_event(killed: Path, tmp_path: Path) -> None:
    home = copied(killed, tmp_path / "source")
    outbox = opened(home, random_hex=lambda size: "a" * 2 * size)
    write_back(outbox)
    target = copied(home, tmp_path / "home", index=False)
    outbox.close()
    with (target / "outbox.db-wal").open("r+b") as log:
        log.truncate(32 + 10 * FRAME)
    check(target, set(range(21, LAST + 1))).close()


@pytest.mark.parametrize("frames", [1, 2, 10])
def test_a_cut_log_is_noticed_by_its_index(
    killed: Path, places: Mapping[int, list[list[Place]]], tmp_path: Path, frames: int
) -> None:
    """SQLite takes a log that ends at a commit for whole; the index still counts the frames."""
    whole = read_log(killed / "outbox.db-wal")
    assert whole is not None
    assert committed_by_index(killed / "outbox.db-shm", whole.salt) == whole.committed == whole.readable
    home = copied(killed, tmp_path / "home")
    with (home / "outbox.db-wal").open("r+b") as log:
        log.truncate(32 + (whole.committed - frames) * FRAME)
    left = read_log(home / "outbox.db-wal")
    assert left is not None
    lost = whole.committed - left.readable
    assert lost >= frames
    outbox = check(home, intact(places, killed, home))
    assert f"{lost} committed frames of the log are destroyed or missing" in reason(outbox)
    outbox.close()


def test_looking_leaves_the_index_that_proves_a_cut(killed: Path, tmp_path: Path) -> None:
    """`pisync status` before the service starts again."""
    home = copied(killed, tmp_path / "home")
    log = read_log(home / "outbox.db-wal")
    assert log is not None
    overwrite(home / "outbox.db-wal", log.frames[log.committed - 1].offset + 8, b"\xff" * 100)
    before = (home / "outbox.db-shm").read_bytes()
    for _ in range(2):
        with OutboxReader(home) as reader:
            assert reader.state().last_seq == LAST - 1
    assert (home / "outbox.db-shm").read_bytes() == before
    outbox = check(home, set(range(21, LAST)))
    assert "committed frames of the log are destroyed or missing" in reason(outbox)
    outbox.close()


def test_the_commands_leave_the_index_that_proves_a_cut(killed: Path, tmp_path: Path) -> None:
    """`pisync status` and `pisync queue`, in processes of their own, after a service that was killed."""
    home = copied(killed, tmp_path / "home")
    log = read_log(home / "outbox.db-wal")
    assert log is not None
    with (home / "outbox.db-wal").open("r+b") as file:
        file.truncate(32 + (log.committed - 1) * FRAME)
    before = (home / "outbox.db-shm").read_bytes()

    for words in (["status", "--json"], ["queue", "list", "--json"]):
        command = [sys.executable, "-m", "pisync_agent", *words, "--home", str(home)]
        shown = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
        assert LAST - 2 <= (shown["last_seq"] if isinstance(shown, dict) else shown[-1]["seq"]) < LAST

    assert (home / "outbox.db-shm").read_bytes() == before
    outbox = check(home, set(range(21, LAST - 1)))
    assert "committed frames of the log are destroyed or missing" in reason(outbox)
    outbox.close()


@pytest.mark.parametrize("index", [b"", b"\xff" * 100, b"\xff" * 32768, None], ids=["empty", "cut", "garbage", "none"])
def test_an_outbox_is_read_whatever_is_left_of_its_index(killed: Path, tmp_path: Path, index: bytes | None) -> None:
    home = copied(killed, tmp_path / "home", index=False)
    if index is not None:
        (home / "outbox.db-shm").write_bytes(index)

    with OutboxReader(home) as reader:
        assert reader.state().last_seq == LAST

    assert index is None or (home / "outbox.db-shm").read_bytes() == index


def test_an_outbox_in_use_is_read_as_it_is_now(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(1, 200):
        outbox.append([event(number, size=900)])
        if number % 20 == 0:
            deliver(outbox, number - 5)
            outbox.trim()
            write_back(outbox)
        with OutboxReader(tmp_path) as reader:
            assert reader.state().last_seq == number
    outbox.close()
    with OutboxReader(tmp_path) as reader:
        assert reader.state().last_seq == 199


@pytest.mark.parametrize("what", [bytes(24), b"\xff" * 24], ids=["zeros", "garbage"])
def test_the_last_event_is_carried_though_its_frame_lost_its_header(killed: Path, tmp_path: Path, what: bytes) -> None:
    home = copied(killed, tmp_path / "home")
    log = read_log(home / "outbox.db-wal")
    assert log is not None
    overwrite(home / "outbox.db-wal", log.frames[log.committed - 1].offset - 24, what)
    check(home, set(range(21, LAST + 1))).close()


def test_an_index_of_another_round_or_torn_says_nothing(killed: Path, tmp_path: Path) -> None:
    log = read_log(killed / "outbox.db-wal")
    assert log is not None
    home = copied(killed, tmp_path / "home")
    index = home / "outbox.db-shm"
    assert committed_by_index(index, bytes(8)) == 0
    overwrite(index, 16, b"\xff")
    assert committed_by_index(index, log.salt) == 0
    overwrite(index, 48 + 16, b"\xff")
    assert committed_by_index(index, log.salt) == 0, "both copies agree, their checksum does not"
    index.write_bytes(b"")
    assert committed_by_index(index, log.salt) == 0
    index.unlink()
    assert committed_by_index(index, log.salt) == 0


def test_an_index_in_use_by_this_process_is_left_alone(killed: Path, tmp_path: Path) -> None:
    """To close it a second time would drop the locks that SQLite holds on it."""
    home = copied(killed, tmp_path / "home")
    log = read_log(home / "outbox.db-wal")
    assert log is not None
    with (home / "outbox.db-shm").open("rb"):
        assert committed_by_index(home / "outbox.db-shm", log.salt) == 0


def test_lost_events_are_counted(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "running", random_hex=lambda size: "a" * 2 * size)
    record(outbox, 1, 60)
    deliver(outbox, 1)
    outbox.close()
    home = copied(tmp_path / "running", tmp_path / "home")
    whole = (home / "outbox.db").read_bytes()
    at = whole.index(b'{"seq":30,') // PAGE * PAGE
    gone = {number for number in range(2, 61) if b'{"seq":%d,' % number in whole[at : at + PAGE]}
    overwrite(home / "outbox.db", at, bytes(PAGE))
    outbox = check(home, set(range(2, 61)) - gone)
    assert f"the newest event found is 60, {len(gone)} before it cannot be read" in reason(outbox)
    assert "may be missing" not in reason(outbox)
    outbox.close()


def test_an_undamaged_log_is_no_reason_to_salvage(killed: Path, tmp_path: Path) -> None:
    outbox = check(copied(killed, tmp_path / "home"), set(range(21, LAST + 1)))
    assert outbox.state().salvaged == ()
    assert seqs(outbox) == list(range(1, LAST + 2))
    outbox.close()


def test_a_torn_last_commit_is_no_damage_beside_its_index(killed: Path, tmp_path: Path) -> None:
    """A kill in the middle of a commit: the index does not count it yet."""
    home = copied(killed, tmp_path / "home")
    log = read_log(home / "outbox.db-wal")
    assert log is not None
    last = log.frames[log.committed - 1].offset - 24
    whole = (home / "outbox.db-wal").read_bytes()
    overwrite(home / "outbox.db-wal", 32 + log.committed * FRAME, whole[last : last + FRAME - 100])
    outbox = check(home, set(range(21, LAST + 1)))
    assert outbox.state().salvaged == ()
    outbox.close()


# Many at random


def zero(rng: random.Random, size: int) -> tuple[int, bytes]:
    return rng.randrange(size // SECTOR) * SECTOR, bytes(SECTOR * rng.choice([1, 1, 1, 2, 8, 9, 40]))


def garbage(rng: random.Random, size: int) -> tuple[int, bytes]:
    return rng.randrange(size // SECTOR) * SECTOR, rng.randbytes(SECTOR * rng.choice([1, 1, 2, 8]))


def first_sector(rng: random.Random, _: int) -> tuple[int, bytes]:
    size = SECTOR * rng.choice([1, 1, 8, 17])
    return 0, rng.choice([bytes(size), rng.randbytes(size)])


def some_bytes(rng: random.Random, size: int) -> tuple[int, bytes]:
    return rng.randrange(size), rng.randbytes(rng.choice([1, 4, 100]))


HOLES: tuple[Callable[[random.Random, int], tuple[int, bytes]], ...] = (zero, garbage, first_sector, some_bytes)


@pytest.mark.parametrize("seed", range(30))
def test_every_event_on_intact_pages_is_carried_whatever_the_holes(
    killed: Path, places: Mapping[int, list[list[Place]]], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    for round_ in range(6):
        home = copied(killed, tmp_path / f"home{round_}")
        log = home / "outbox.db-wal"
        for _ in range(rng.choice([1, 1, 2, 4])):
            at, what = rng.choice(HOLES)(rng, log.stat().st_size)
            overwrite(log, at, what[: log.stat().st_size - at])
        if rng.random() < 0.2:
            with log.open("r+b") as file:
                file.truncate(rng.randrange(33, log.stat().st_size))
        expected = intact(places, killed, home)
        outbox = check(home, expected)
        assert not [letter for letter in dead_letters(outbox) if letter.code != "damaged"]
        outbox.close()
        shutil.rmtree(home)


def test_numbers_are_stored_as_ranges() -> None:
    rng = random.Random(3)
    for _ in range(50):
        numbers, expected = Numbers(), set()
        for _ in range(200):
            number = rng.randrange(120)
            numbers.add(number)
            expected.add(number)
            assert numbers.count_above(60) == len([each for each in expected if each > 60])
        assert [number for number in range(-5, 130) if number in numbers] == sorted(expected)
        assert (numbers.lowest, numbers.highest) == (min(expected), max(expected))
        assert len(numbers._firsts) == len([each for each in expected if each - 1 not in expected])
