"""An embedded receiver moves to PostgreSQL: everything is there, answers the same, and goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from pisync_common.models import Stamp
from pisync_receiver.config import Paths
from pisync_receiver.control import writer_lock
from pisync_receiver.store import (
    Enroll,
    EnrollmentCreate,
    EventFilter,
    Reader,
    Store,
    TokenCreate,
    TokenRevoke,
)
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import open_store as open_postgres
from pisync_receiver.store.sqlite import open_store
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.receiver_process import wait_until
from tests.support.stores.made import NOON, batch, event, invalid, report, send, tell, written

pytestmark = needs_postgres

DEVICES = [f"pibook-{number}" for number in range(5)]
HOUR = 3_600_000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A receiver's database with a bit of everything."""
    path = tmp_path / "receiver.db"
    with closing(open_store(path, create=True)) as store:
        for number, device in enumerate(DEVICES):
            fill(store, device, number)
    return path


@pytest.fixture
def new() -> Iterator[str]:
    with fresh_database() as url:
        yield url


def fill(store: Store, device: str, number: int) -> None:
    sent = Stamp(at_ms=NOON, boot_id=f"boot-{number}", boottime_ms=HOUR, clock_synced=False)
    send(store, batch([1, 2, 3, 7, 8], device=device, sent=sent, received_ms=NOON + number * 40 * 24 * HOUR))
    send(store, batch([event(2, note="another"), 9], device=device, bad=[invalid(10)]))
    send(store, batch([event(1, origin=("stream-1", 1)), event(2, note="new")], device=device, stream="stream-2"))
    send(store, batch([event(3, note="ünï ✓", boot_id="b", boottime_ms=5)], device=device, stream="stream-2"))
    for turn in range(6):
        tell(store, report(NOON + turn, device=device, failed=turn > 1, key=f"key-{turn}", internet_speed=turn / 2))
    tell(store, report(NOON + 9, device=device, failed=True, errors={"dns": 3}, internet_speed=5))
    token = written(store, TokenCreate(role="device", token_hash=f"hash-{device}", created_ms=NOON, device_id=device))
    if number == 0:
        written(store, TokenRevoke(token_id=token.id, at_ms=NOON))  # type: ignore[attr-defined]
    written(store, EnrollmentCreate(code_hash=f"code-{device}", created_ms=NOON, expires_ms=NOON + HOUR, site="Nakuru"))
    if number == 1:
        wish = Enroll(code_hash=f"code-{device}", device_id="pi-x", fallback_device_id="f", token_hash="t", at_ms=NOON)
        written(store, wish)


def copy(old: Path, new: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pisync_receiver", "copy", "--from", f"sqlite:///{old}", "--to", new]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def answers(reader: Reader) -> list[object]:
    """What every query says."""
    said: list[object] = [reader.devices(), reader.devices(site="Nakuru"), reader.all_tokens(), reader.enrollments()]
    for device in [*DEVICES, "pi-x", "nobody"]:
        said += [reader.device(device), reader.completeness(device), reader.rejected(device)]
        said += [reader.history(device), reader.history(device, failed=True, limit=2)]
        said += [list(reader.iterate_events(EventFilter(device_id=device)))]
    said += [reader.failures(), reader.failures(mode="total"), reader.failures(mode="total", since_ms=NOON + 3)]
    said += [reader.events(EventFilter(learner_id="s-17"), limit=3), reader.events(EventFilter(), limit=4, cursor="3")]
    said += [list(reader.iterate_events(EventFilter(since_ms=NOON + 41 * 24 * HOUR)))]
    return said


def test_every_question_has_the_same_answer_and_both_go_on_alike(old: Path, new: str) -> None:
    done = copy(old, new)
    assert done.returncode == 0, done.stderr
    assert "events" in done.stdout
    assert "the same" in done.stdout
    with closing(open_store(old)) as one, closing(open_postgres(PostgresUrl(conninfo=new))) as other:
        assert answers(other) == answers(one)
        for store in (one, other):
            again = send(store, batch([1, 2, 3, 7, 8], device=DEVICES[0]))
            assert (again.stored, again.duplicates) == (0, 5)
            assert send(store, batch([4, 5, 6], device=DEVICES[0])).watermark == 10
            assert tell(store, report(NOON + 99, device=DEVICES[0])).id == 36
            assert tell(store, report(NOON + 99, device=DEVICES[0], key="key-1")).at_ms == NOON + 1
            written(store, TokenCreate(role="viewer", token_hash="new", created_ms=NOON))
        assert answers(other) == answers(one)
        ids = [row.id for row in other.iterate_events(EventFilter())]
        assert all(low < high for low, high in pairwise(ids))


def test_months_that_the_data_needs_are_made(old: Path, new: str) -> None:
    copy(old, new)
    with psycopg.connect(new) as connection:
        rows = connection.execute("SELECT DISTINCT tableoid::regclass::text FROM events").fetchall()
    assert [name for (name,) in rows if name.endswith("_rest")] == []


def test_a_second_time_finds_everything_there_and_changes_nothing(old: Path, new: str) -> None:
    copy(old, new)
    again = copy(old, new)
    assert again.returncode == 0
    assert "already; nothing was changed" in again.stderr


def test_a_database_with_data_of_its_own_is_left_alone(old: Path, new: str) -> None:
    copy(old, new)
    with closing(open_postgres(PostgresUrl(conninfo=new))) as store:
        send(store, batch([4], device=DEVICES[0]))
        before = answers(store)
        refused = copy(old, new)
        assert refused.returncode == 1
        assert "data of its own" in refused.stderr
        assert "nothing was changed" in refused.stderr
        assert answers(store) == before


def test_killed_in_the_middle_it_has_changed_nothing_and_can_be_done_again(old: Path, new: str) -> None:
    with closing(open_store(old)) as store:
        for number in range(40):
            send(store, batch(range(number * 1000 + 1, number * 1000 + 1001), device="pibox", stream="long"))
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
    assert copy(old, new).returncode == 0


def test_a_receiver_that_serves_has_to_be_stopped_first(old: Path, new: str) -> None:
    with writer_lock(Paths(database=old), "a test"):
        refused = copy(old, new)
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
def test_wrong_directions(source: str, target: str, code: int) -> None:
    command = [sys.executable, "-m", "pisync_receiver", "copy", "--from", source, "--to", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code
    assert done.stderr.startswith("pisync-receiver: ")
