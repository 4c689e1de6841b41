"""Broken files: set aside, salvaged and announced; and no readable pending event is lost."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pisync_agent.outbox.database import PAGE_BYTES
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.outbox.recovery.contents import event_of
from pisync_agent.outbox.recovery.sqlite_pages import Pages
from tests.support.outboxes import (
    STAMP,
    Faults,
    bodies,
    dead_letters,
    deliver,
    event,
    event_text,
    events,
    opened,
    receipt,
    seqs,
    sqlite_error,
)

PAGE = PAGE_BYTES


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an outbox: 60 events, 1 to 20 delivered, 3 dead, one sync event; all of it in the database file."""
    home = tmp_path_factory.mktemp("sound")
    fill(home)
    return home


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as it is after a SIGKILL: the last third stands in the log."""
    home = tmp_path_factory.mktemp("running")
    outbox = fill(home, close=False)
    copy = tmp_path_factory.mktemp("killed")
    copy_files(home, copy)
    outbox.close()
    return copy


def fill(home: Path, *, close: bool = True) -> Outbox:
    outbox = opened(home, random_hex=lambda size: "a" * 2 * size)
    for first in range(1, 41, 5):
        outbox.append(events(5, first=first, size=200))
    deliver(outbox, 19)
    outbox.settle(receipt(outbox, 20, rejected=[(3, "invalid_event")]), [20])
    outbox.add_sync_event(QueuedSyncEvent(key="r1", stamp=STAMP, files=20))
    outbox.set_note("last_run", "then")
    outbox._file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    outbox.append([event(41, id="key-41")])
    for number in range(42, 61):
        outbox.append([event(number, size=200)])
    if close:
        outbox.close()
    return outbox


def copy_files(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for name in ("outbox.db", "outbox.db-wal"):
        (target / name).unlink(missing_ok=True)
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target


def numbers(outbox: Outbox) -> list[int]:
    return [json.loads(body)["data"]["n"] for body in bodies(outbox)]


def origins(outbox: Outbox) -> list[int]:
    return [json.loads(body)["origin"]["seq"] for body in bodies(outbox)]


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def root_pages(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT name, rootpage FROM sqlite_schema").fetchall())
    connection.close()
    return found


DAMAGES: dict[str, Callable[[Path], None]] = {
    "header": lambda path: overwrite(path, 0, b"\xa5" * 100),
    "first page": lambda path: overwrite(path, 0, bytes(PAGE)),
    "not a database": lambda path: overwrite(path, 0, b"<html>"),
    "events' inner page": lambda path: overwrite(path, (root_pages(path)["events"] - 1) * PAGE, bytes(PAGE)),
    "index page": lambda path: overwrite(path, (root_pages(path)["events_id"] - 1) * PAGE, b"\xff" * PAGE),
    "notes page": lambda path: overwrite(path, (root_pages(path)["notes"] - 1) * PAGE, b"\x00\xff" * (PAGE // 2)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_outside_the_event_pages_loses_no_event(sound: Path, tmp_path: Path, damage: str) -> None:
    home = copy_files(sound, tmp_path / "home")
    DAMAGES[damage](home / "outbox.db")
    outbox = opened(home)
    assert numbers(outbox) == list(range(21, 61))
    assert origins(outbox) == list(range(21, 61))
    assert seqs(outbox) == list(range(1, 41))
    assert [letter.seq for letter in dead_letters(outbox)] == [3]
    (aside,) = outbox.state().salvaged
    assert (aside.transferred, aside.damaged) == (40, 0)
    assert (home / aside.file).exists()
    outbox.close()


def test_unreadable_pointers_transfer_all_readable_events(sound: Path, tmp_path: Path) -> None:
    home = copy_files(sound, tmp_path / "home")
    overwrite(home / "outbox.db", (root_pages(home / "outbox.db")["pointers"] - 1) * PAGE, bytes(PAGE))
    outbox = opened(home)
    assert numbers(outbox) == [n for n in range(1, 61) if n != 3]
    # The stream's name stands twice in the file.
    assert {json.loads(body)["origin"]["stream"] for body in bodies(outbox)} == {"a" * 16}
    outbox.close()


def test_a_wrong_pointer_is_not_believed(sound: Path, tmp_path: Path) -> None:
    """`delivered` made larger by a broken bit: events must not pass for delivered."""
    home = copy_files(sound, tmp_path / "home")
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute("UPDATE pointers SET delivered = 50")
    connection.commit()
    connection.close()
    outbox = opened(home)
    waiting = [json.loads(body)["data"]["n"] for body in bodies(outbox, outbox.delivered)]
    assert set(waiting) >= set(range(21, 61))
    outbox.close()


def test_an_event_found_twice_in_the_file_is_transferred_once(sound: Path, tmp_path: Path) -> None:
    """Pages that were in use before keep their old content."""
    home = copy_files(sound, tmp_path / "home")
    content = (home / "outbox.db").read_bytes()
    overwrite(home / "outbox.db", 0, bytes(100))
    with (home / "outbox.db").open("ab") as file:
        file.write(content[PAGE:])
    outbox = opened(home)
    assert numbers(outbox) == list(range(21, 61))
    assert [letter.seq for letter in dead_letters(outbox)] == [3]
    outbox.close()


def test_a_salvage_makes_a_sync_event_and_is_listed(sound: Path, tmp_path: Path) -> None:
    home = copy_files(sound, tmp_path / "home")
    overwrite(home / "outbox.db", 0, bytes(100))
    outbox = opened(home)
    assert outbox.stream != "a" * 16
    events_found = []
    while (found := outbox.next_sync_event()) is not None:
        events_found.append((found.key, dict(found.errors)))
        outbox.delete_sync_event(found.id or 0)
    assert events_found[0] == ("r1", {})
    assert [errors for _, errors in events_found] == [{}, {"storage": 1}]
    assert outbox.note("last_run") == "then"
    (aside,) = outbox.state().salvaged
    assert aside.at_ms == STAMP.at_ms
    assert "not a database" in aside.reason
    assert aside.file.startswith("outbox-20261123T090000000Z-")
    assert aside.file.endswith(".broken.db")
    outbox.close()


def test_ids_are_still_stored_once_after_a_salvage(sound: Path, tmp_path: Path) -> None:
    home = copy_files(sound, tmp_path / "home")
    overwrite(home / "outbox.db", 0, bytes(100))
    outbox = opened(home)
    (seq,) = outbox.append([event(41, id="key-41")])
    assert json.loads(event_text(outbox, seq if isinstance(seq, int) else 0) or "")["origin"]["seq"] == 41
    outbox.close()


def test_a_truncated_file_yields_its_remaining_events(sound: Path, tmp_path: Path) -> None:
    size = (sound / "outbox.db").stat().st_size
    for length in range(0, size, 1000):
        home = copy_files(sound, tmp_path / f"home{length}")
        whole = (home / "outbox.db").read_bytes()
        (home / "outbox.db").write_bytes(whole[:length])
        readable = readable_events(home)
        outbox = opened(home)
        assert readable <= set(numbers(outbox))
        assert outbox.append(events(1, first=99)) == [len(numbers(outbox))]
        outbox.close()


def readable_events(home: Path) -> set[int]:
    """Events after 20 whose whole text stands in one piece in a whole page of the file or a frame of its log."""
    found = set()
    for piece in pieces(home):
        for number in range(21, 61):
            pad = f',"pad":"{"x" * 200}"' if number != 41 else ""
            if f'"data":{{"n":{number}{pad}}}}}'.encode() in piece and f'{{"seq":{number},"type"'.encode() in piece:
                found.add(number)
    return found


def pieces(home: Path) -> Iterator[bytes]:
    content = (home / "outbox.db").read_bytes()
    yield from (content[at : at + PAGE] for at in range(0, len(content) - PAGE + 1, PAGE))
    if (home / "outbox.db-wal").exists():
        log = (home / "outbox.db-wal").read_bytes()
        yield from (log[at + 24 : at + 24 + PAGE] for at in range(32, len(log) - 24 - PAGE + 1, 24 + PAGE))


def test_an_empty_database_beside_a_log_is_salvaged_from_the_log(killed: Path, tmp_path: Path) -> None:
    for gone in (False, True):
        home = copy_files(killed, tmp_path / f"home{gone}")
        (home / "outbox.db").write_bytes(b"")
        if gone:
            (home / "outbox.db").unlink()
        outbox = opened(home)
        # The log holds every page written since the last checkpoint, whole.
        assert set(numbers(outbox)) >= set(range(41, 61))
        outbox.close()


def test_a_log_without_its_header_is_noticed(killed: Path, tmp_path: Path) -> None:
    home = copy_files(killed, tmp_path / "home")
    overwrite(home / "outbox.db-wal", 0, b"\xff" * 32)
    outbox = opened(home)
    assert numbers(outbox) == list(range(21, 61))
    assert "log" in outbox.state().salvaged[0].reason
    outbox.close()


def test_a_frame_broken_in_the_middle_of_the_log_is_noticed(killed: Path, tmp_path: Path) -> None:
    """SQLite alone would drop every commit behind it, and say nothing."""
    home = copy_files(killed, tmp_path / "home")
    overwrite(home / "outbox.db-wal", 32 + 2 * (24 + PAGE) + 24 + 10, b"\xff")
    outbox = opened(home)
    assert set(numbers(outbox)) >= set(range(21, 61))
    assert len(outbox.state().salvaged) == 1
    outbox.close()


def test_a_torn_last_commit_is_not_damage(killed: Path, tmp_path: Path) -> None:
    """A power cut tears the commit under way; it was not acknowledged."""
    home = copy_files(killed, tmp_path / "home")
    log = home / "outbox.db-wal"
    overwrite(log, log.stat().st_size - 100, bytes(100))
    outbox = opened(home)
    assert outbox.state().salvaged == ()
    assert seqs(outbox, after=20) == list(range(21, 60))
    outbox.close()


def test_an_intact_log_is_not_damage(killed: Path, tmp_path: Path) -> None:
    outbox = opened(copy_files(killed, tmp_path / "home"))
    assert outbox.state().salvaged == ()
    assert seqs(outbox) == list(range(1, 61))
    outbox.close()


def test_a_changed_text_becomes_a_dead_letter(sound: Path, tmp_path: Path) -> None:
    home = copy_files(sound, tmp_path / "home")
    content = (home / "outbox.db").read_bytes()
    at = content.index(b'{"seq":57,') + 40
    overwrite(home / "outbox.db", at, b"\x00\xff?")
    outbox = opened(home)
    assert numbers(outbox) == [n for n in range(21, 61) if n != 57]
    assert [(letter.seq, letter.code) for letter in dead_letters(outbox)] == [(3, "invalid_event"), (57, "damaged")]
    assert dead_letters(outbox)[1].body.startswith('{"seq":57,')
    assert outbox.state().salvaged[0].damaged == 1
    outbox.close()


def test_damage_found_while_reading_is_salvaged_at_once(sound: Path, tmp_path: Path) -> None:
    home = copy_files(sound, tmp_path / "home")
    content = (home / "outbox.db").read_bytes()
    overwrite(home / "outbox.db", content.index(b'{"seq":30,') + 40, b"?")
    outbox = opened(home)
    old = outbox.stream
    assert old == "a" * 16
    assert outbox.read(20, max_events=100, max_bytes=10**6, stream=old) == []
    assert outbox.stream != old
    assert numbers(outbox) == [n for n in range(21, 61) if n != 30]
    outbox.close()


def test_damage_found_while_recording_is_salvaged_and_the_event_recorded(sound: Path, tmp_path: Path) -> None:
    faults = Faults()
    home = copy_files(sound, tmp_path / "home")
    outbox = opened(home, connect=faults.connect)
    broken = [True]

    def malformed(sql: str) -> None:
        if sql.startswith("INSERT INTO events") and broken:
            broken.pop()
            raise sqlite_error(sqlite3.DatabaseError, "database disk image is malformed", "SQLITE_CORRUPT")

    faults.fault = malformed
    assert outbox.append(events(1, first=61)) == [41]
    assert numbers(outbox) == list(range(21, 62))
    outbox.close()


def test_a_disk_that_fails_throws_nothing_away(sound: Path, tmp_path: Path) -> None:
    faults = Faults()
    home = copy_files(sound, tmp_path / "home")

    def io_error(sql: str) -> None:
        if sql.startswith("SELECT"):
            raise sqlite_error(sqlite3.OperationalError, "disk I/O error", "SQLITE_IOERR_READ")

    faults.fault = io_error
    with pytest.raises(Exception, match="nothing is lost"):
        opened(home, connect=faults.connect)
    assert sorted(path.name for path in home.iterdir() if "broken" in path.name) == []
    outbox = opened(home)
    assert seqs(outbox, after=20) == list(range(21, 61))
    outbox.close()


def test_twice_broken_keeps_the_first_origin(sound: Path, tmp_path: Path) -> None:
    home = copy_files(sound, tmp_path / "home")
    for _ in range(2):
        overwrite(home / "outbox.db", 0, bytes(100))
        outbox = opened(home)
        assert origins(outbox) == list(range(21, 61))
        assert {json.loads(body)["origin"]["stream"] for body in bodies(outbox)} == {"a" * 16}
        outbox.close()
    outbox = opened(home)
    assert len(outbox.state().salvaged) == 2
    assert [letter.seq for letter in dead_letters(outbox)] == [3]
    outbox.close()


def test_many_events_are_transferred_in_order(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for first in range(1, 6001, 1000):
        outbox.append(events(1000, first=first))
    deliver(outbox, 2000)
    outbox._trim(0)
    outbox.append(events(1500, first=6001))  # into the pages that came free
    outbox.close()
    overwrite(tmp_path / "outbox.db", 0, bytes(100))
    outbox = opened(tmp_path)
    assert numbers(outbox) == list(range(2001, 7501))
    outbox.close()


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_loses_a_readable_event(sound: Path, killed: Path, tmp_path: Path, seed: int) -> None:
    """Bits, bytes, sectors and pages; opened, read through, recorded into."""
    rng = random.Random(seed)
    for round_ in range(10):
        home = copy_files(rng.choice([sound, killed]), tmp_path / f"home{round_}")
        for _ in range(rng.choice([1, 1, 2, 5])):
            spoil(home, rng)
        # A broken last commit of a log cannot be told from a commit torn by a power cut, which was not acknowledged;
        # nor can the last but one, where the mark is destroyed that ended it.
        readable = intact_events(home) - ({59, 60} if (home / "outbox.db-wal").exists() else set())
        outbox = opened(home)
        for _ in range(3):  # damage that shows only later
            outbox.read(0, max_events=10**6, max_bytes=10**9)
        (new,) = outbox.append([event(99)])
        assert isinstance(new, int)
        waiting = {json.loads(body)["data"]["n"] for body in bodies(outbox, outbox.delivered)}
        assert readable <= waiting
        state = outbox.state()
        assert seqs(outbox) == list(range(state.kept_from, state.last_seq + 1))
        outbox.close()
        shutil.rmtree(home)


def spoil(home: Path, rng: random.Random) -> None:
    path = home / rng.choice(["outbox.db", "outbox.db", "outbox.db-wal"])
    if not path.exists() or path.stat().st_size == 0:
        return
    size = path.stat().st_size
    width = rng.choice([1, 1, 4, 512, PAGE])
    at = rng.randrange(size) // width * width
    content = rng.choice([rng.randbytes(width), bytes(width), b"\xff" * width])
    overwrite(path, at, content[: size - at])


def intact_events(home: Path) -> set[int]:
    """What the page reader finds with its checksum right: a floor that `open` must reach."""
    found = set()
    with Pages(home / "outbox.db") as pages:
        rows = [row for number in pages.numbers() for row in pages.rows(number)]
        rows += [row for other in pages.others for row in pages.other_rows(other)]
    for row in rows:
        one = event_of(row)
        if one is not None and one.intact and one.seq > 20:
            found.add(one.seq)
    return found
