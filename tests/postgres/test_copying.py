"""An embedded receiver moves to PostgreSQL: everything is there, answers the same, and goes on."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from pisync_common.models import Stamp
from pisync_receiver.domain.fleet import DeviceFilter
from pisync_receiver.domain.records import EventFilter, EventRecord
from pisync_receiver.domain.submissions import Actor, CodeCreate, DeviceChange, Enroll, TokenCreate, TokenRevoke
from pisync_receiver.domain.summaries import SumFilter
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.copy import CopyRefused, copy
from pisync_receiver.store.opening import open_store, writing
from tests.support.blocking import BlockingStore, all_events, send, sync, written
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import wait_until
from tests.support.submissions import DAY, HOUR, NOON, batch, event, invalid, sync_event

pytestmark = needs_postgres

DEVICES = [f"pibook-{number}" for number in range(5)]
WINDOW = """
INSERT INTO sites VALUES ('Nakuru', 86400000, 5), ('مدرسة', NULL, 5);
INSERT INTO watched VALUES ('pibook-1', 'silent', 5), ('pibook-2', 'well', NULL);
INSERT INTO transitions VALUES (7, 'pibook-1', 'Nakuru', 'well', 'silent', 5, 4, NULL, NULL);
INSERT INTO notices VALUES (8, 'log', 'the log', 'change', 'Nakuru is silent', 'all of it', 5, NULL, NULL);
INSERT INTO notes VALUES (9, 'pibook-1', NULL, 5, 'admin', 'the lid is broken'), (10, NULL, 'Nakuru', 5, NULL, 'solar');
INSERT INTO erased VALUES ('00ff', 'ff00', 'receipt', 5, NULL, 3, 1);
INSERT INTO secrets VALUES ('learners', X'0102');
"""
"""What the admin's window adds."""
UUID = "5c1e2f60-7a0b-4f8e-9d57-0a1b2c3d4e5f"


def open_file(path: Path) -> BlockingStore:
    return BlockingStore(lambda: open_store(path, create=True))


def open_postgres(url: str) -> BlockingStore:
    return BlockingStore(lambda: open_store(PostgresUrl(conninfo=url)))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A receiver's database with something in every table."""
    path = tmp_path / "receiver.db"
    store = open_file(path)
    for number, device in enumerate(DEVICES):
        fill(store, device, number)
    store.retain(NOON, dry_run=False)
    store.fold_sums()
    store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(WINDOW)
    return path


@pytest.fixture
def new() -> Iterator[str]:
    with fresh_database() as url:
        yield url


def fill(store: BlockingStore, device: str, number: int) -> None:
    sent = Stamp(at_ms=NOON, boot_id=f"boot-{number}", boottime_ms=HOUR, clock_synced=False)
    send(store, batch([1, 2, 3, 7, 8], device=device, sent=sent, received_ms=NOON + number * 40 * DAY))
    send(store, batch([event(2, note="another"), 9, invalid(10)], device=device))
    send(store, batch([event(1, origin=("stream-1", 1)), event(2, note="new")], device=device, stream="stream-2"))
    send(store, batch([event(3, note="ünï ✓", boot_id="b", boottime_ms=5)], device=device, stream="stream-2"))
    send(store, batch([event(4, event_id=UUID, learner_id="عائشة\0x")], device=device, stream="stream-2"))
    for turn in range(6):
        sync(store, sync_event(NOON + turn, device=device, failed=turn > 1, key=f"k{turn}", internet_speed=turn / 2))
    sync(store, sync_event(NOON + 9, device=device, failed=True, errors={"dns": 3}, internet_speed=5))
    token = written(store, TokenCreate(scope="device", token_hash=f"hash-{device}", at_ms=NOON, device_id=device))
    if number == 0:
        written(store, TokenRevoke(token_id=token.id, at_ms=NOON))
        by = Actor(name="مدير", address="::1")
        written(store, DeviceChange(device_id=device, at_ms=NOON, site="Kisumu", label="front row", by=by))
    written(store, CodeCreate(code_hash=f"code-{device}", at_ms=NOON, expires_ms=NOON + HOUR, site="Nakuru"))
    if number == 1:
        code, device_id = f"code-{device}", "pi-x"
        written(store, Enroll(code_hash=code, device_id=device_id, fallback_device_id="f", token_hash="t", at_ms=NOON))


def run_copy(old: Path, new: str) -> list[str]:
    """Copy in this process; return the lines of progress."""
    lines: list[str] = []
    asyncio.run(copy(old, PostgresUrl(conninfo=new), now_ms=lambda: NOON, progress=lines.append))
    return lines


def answers(store: BlockingStore) -> list[object]:
    """What every query says."""
    said: list[object] = [
        store.audit(),
        store.devices(),
        store.devices(DeviceFilter(site="Nakuru")),
        store.tokens(),
        store.codes(),
        store.fleet(),
    ]
    for device in [*DEVICES, "pi-x", "unknown"]:
        said += [store.device(device), store.completeness(device), store.rejected(device)]
        said += [store.history(device), store.history(device, failed=True, limit=2)]
        said += [shown(all_events(store, EventFilter(device_id=device)))]
    days = SumFilter(first_day=NOON // DAY - 300, last_day=NOON // DAY + 100)
    said += [store.causes(days), store.runs(days), store.speeds(days), store.activity(days)]
    said += [store.failures(), store.failures(mode="total"), store.failures(mode="total", since_ms=NOON + 3)]
    said += [shown(store.events(EventFilter(learner_id="s-17"), limit=3).rows)]
    said += [shown(all_events(store, EventFilter(since_ms=NOON + 41 * DAY)))]
    return said


def shown(rows: list[EventRecord]) -> list[object]:
    """Rows that can be compared: raw JSON as bytes, and U+0000, which PostgreSQL cannot hold, replaced."""
    return [
        {name: getattr(row, name) for name in row.__struct_fields__}
        | {"data": bytes(row.data), "learner_id": (row.learner_id or "").replace("\0", "\ufffd")}
        for row in rows
    ]


def test_answers_are_the_same_and_both_continue_alike(old: Path, new: str) -> None:
    lines = run_copy(old, new)
    assert "copying events" in lines
    here, there = open_file(old), open_postgres(new)
    assert answers(there) == answers(here)
    for store in (here, there):
        again = send(store, batch([1, 2, 3, 7, 8], device=DEVICES[0]))
        assert (again.stored, again.duplicates) == (0, 5)
        assert send(store, batch([4, 5, 6], device=DEVICES[0])).watermark == 10
        assert sync(store, sync_event(NOON + 99, device=DEVICES[0])).id == 36
        assert sync(store, sync_event(NOON + 99, device=DEVICES[0], key="k1")).at_ms == NOON + 1
        assert written(store, TokenCreate(scope="viewer", token_hash="new", at_ms=NOON)).id == 7
    assert answers(there) == answers(here)
    ids = [row.id for row in all_events(there, EventFilter())]
    assert all(low < high for low, high in pairwise(ids))
    here.close()
    there.close()


def test_every_table_is_copied_and_numbers_go_on(old: Path, new: str) -> None:
    with closing(sqlite3.connect(old)) as source, source:
        source.execute("INSERT INTO sum_additions (body) VALUES ('[]')")
    lines = run_copy(old, new)
    with closing(sqlite3.connect(old)) as source:
        tables = {name for (name,) in source.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        tables -= {"migrations", "pulse", "sqlite_sequence"}
        assert {line.removeprefix("copying ") for line in lines if line.startswith("copying ")} == tables
        empty = {name for name in tables if source.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,)}
    assert empty == set(), "then nothing shows that it is copied"
    with psycopg.connect(new) as target:
        numbers = {
            "transitions": "INSERT INTO transitions (device_id, before, state, at_ms) VALUES ('d', 'new', 'well', 0)",
            "notices": "INSERT INTO notices (target, service, kind, title, body, made_ms) "
            "VALUES ('log', '', 'change', '', '', 0)",
            "notes": "INSERT INTO notes (at_ms, text) VALUES (0, '')",
        }
        found = [target.execute(f"{sql} RETURNING id".encode()).fetchone() for sql in numbers.values()]
        assert found == [(8,), (9,), (11,)]


def test_second_copy_finds_everything_and_changes_nothing(old: Path, new: str) -> None:
    run_copy(old, new)
    store = open_postgres(new)
    before = answers(store)
    again = asyncio.run(copy(old, PostgresUrl(conninfo=new), now_ms=lambda: NOON, progress=lambda _: None))
    assert again.before
    assert again.rows["events"] > 0
    assert answers(store) == before
    store.close()


def test_database_with_data_of_its_own_is_refused_and_unchanged(old: Path, new: str) -> None:
    run_copy(old, new)
    store = open_postgres(new)
    send(store, batch([4], device=DEVICES[0]))
    before = answers(store)
    with pytest.raises(CopyRefused, match="data of its own"):
        run_copy(old, new)
    assert answers(store) == before
    store.close()


def test_difference_read_back_is_noticed_and_nothing_is_stored(old: Path, new: str) -> None:
    run_copy(old, new)
    with psycopg.connect(new, autocommit=True) as connection:
        connection.execute("TRUNCATE devices, streams, gaps, events, event_keys, carried, rejected, arrivals")
        connection.execute("ALTER TABLE audit DISABLE TRIGGER USER")
        connection.execute("TRUNCATE sync_events, tokens, enrollments, audit, sites, sums, watched, transitions")
        connection.execute("TRUNCATE notices, notes, erased, secrets, sum_additions")
        connection.execute("CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
                           "$$ BEGIN NEW.seq = NEW.seq + 1000; RETURN NEW; END $$")  # fmt: skip
        connection.execute("CREATE TRIGGER spoil BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION spoil()")
    with pytest.raises(CopyRefused, match="events, read back, is not what was copied"):
        run_copy(old, new)
    with psycopg.connect(new, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM devices").fetchone() == (0,)


def test_killed_copy_has_changed_nothing_and_can_be_repeated(old: Path, new: str) -> None:
    store = open_file(old)
    for number in range(40):
        send(store, batch(range(number * 1000 + 1, number * 1000 + 1001), device="pibox", stream="long"))
    store.close()
    command = [sys.executable, "-m", "pisync_receiver", "copy", "--from", f"sqlite:///{old}", "--to", new]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("copying events"):
                break
        os.kill(process.pid, signal.SIGKILL)
    with psycopg.connect(new, autocommit=True) as connection:
        active = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        wait_until(lambda: connection.execute(active).fetchone() == (0,), "the server notices")
        assert connection.execute("SELECT count(*) FROM devices").fetchone() == (0,)
    run_copy(old, new)


def test_serving_receiver_must_be_stopped_first(old: Path, new: str) -> None:
    command = [sys.executable, "-m", "pisync_receiver", "copy", "--from", f"sqlite:///{old}", "--to", new]
    with writing(old, "a test"):
        refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode == 1
    assert "in use by a test" in refused.stderr


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("postgresql://x/y", "postgresql://x/y", 2),
        ("sqlite:////x.db", "sqlite:////y.db", 2),
        ("x.db", "postgresql://x/y", 2),
        ("sqlite:////there/is/none.db", "postgresql://x/y", 1),
    ],
)
def test_wrong_directions_are_refused(source: str, target: str, code: int) -> None:
    command = [sys.executable, "-m", "pisync_receiver", "copy", "--from", source, "--to", target]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode == code
    assert "Traceback" not in refused.stderr
