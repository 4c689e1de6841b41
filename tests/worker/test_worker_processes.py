"""Real workers that are killed, disconnected and doubled lose no event, keep the order and repeat the same messages."""

import json
import signal
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import WorkerProcess, run_worker, wait_until
from tests.worker.broker import HOST, PORT, URL, Queue, Taken, needs_rabbitmq
from tests.worker.database import WorkerDatabase

pytestmark = [needs_postgres, needs_rabbitmq]

DEVICES = 7


def settings(database: WorkerDatabase, queue: Queue, *, port: int = PORT) -> dict[str, str]:
    return {
        "database_url": database.url,
        "amqp_url": URL.replace(str(PORT), str(port)),
        "amqp_exchange": queue.name,
        "amqp_queue": queue.name,
    }


def school_day(database: WorkerDatabase, first: int, count: int) -> None:
    """Add `count` events of each device, a few at a time, the way receivers commit them."""
    events = [(f"pibook-{device}", "s1", seq) for seq in range(first, first + count) for device in range(DEVICES)]
    for start in range(0, len(events), 25):
        database.add_events(events[start : start + 25])


def published(database: WorkerDatabase) -> bool:
    return database.position("rabbitmq") == int(database.one("SELECT last FROM arrival_counter"))


def check(taken: Iterable[Taken], last_seq: int, *, repeated: bool) -> None:
    """Every event arrived, first arrivals in order within a device; a repetition is the same message."""
    seen: dict[str, list[int]] = {}
    events_of: dict[str, list[Any]] = {}
    messages = list(taken)
    for message in messages:
        assert events_of.setdefault(message.id, message.events) == message.events
        for event in message.events:
            seen.setdefault(event["device_id"], []).append(event["seq"])
    for seqs in seen.values():
        assert list(dict.fromkeys(seqs)) == list(range(1, last_seq + 1))
    assert len(seen) == DEVICES
    once_each = [event["id"] for events in events_of.values() for event in events]
    assert len(once_each) == len(set(once_each)) == DEVICES * last_seq, "each event is in one message id"
    if not repeated:
        assert len(messages) == len(events_of)


def test_no_event_is_lost_while_the_broker_is_away_or_cut_off(
    database: WorkerDatabase, queue: Queue, tmp_path: Path
) -> None:
    school_day(database, 1, 20)
    with FaultProxy(HOST, PORT) as proxy:
        proxy.refuse = True
        with WorkerProcess(tmp_path / "log", **settings(database, queue, port=proxy.port)) as worker:
            wait_until(lambda: "unavailable, retrying" in worker.log(), "the failure is logged")
            school_day(database, 21, 20)
            assert database.position("rabbitmq") == 0
            proxy.refuse = False
            wait_until(lambda: published(database), "everything is published")
            proxy.cut_up_after = proxy.bytes_up + 20_000
            school_day(database, 41, 40)
            wait_until(lambda: worker.log().count("unavailable, retrying") == 2, "the connection is cut")
            proxy.heal()
            wait_until(lambda: published(database), "everything is published")
            assert worker.stop() == 0
        lines = [json.loads(line) for line in worker.log().splitlines()]

    check(queue.take(), 80, repeated=True)
    logged = [line["message"].split(":")[0] for line in lines if line.get("task") == "publish"]
    assert logged == ["unavailable, retrying", "available again"] * 2
    assert "guest:guest" not in worker.log()


def test_killed_workers_lose_no_event_and_repeat_the_same_messages(
    database: WorkerDatabase, queue: Queue, tmp_path: Path
) -> None:
    with FaultProxy(HOST, PORT) as proxy:
        worker = WorkerProcess(tmp_path / "log", **settings(database, queue, port=proxy.port))
        for part in range(4):
            school_day(database, part * 30 + 1, 30)
            proxy.rate = 40_000
            before = proxy.bytes_up
            worker.start()
            wait_until(lambda before=before: proxy.bytes_up > before + 12_000, "messages are being sent")  # type: ignore[misc]
            worker.kill()
            assert not published(database)
        proxy.heal()
        with worker:
            wait_until(lambda: published(database), "everything is published")

    check(queue.take(), 120, repeated=True)


def test_a_worker_takes_over_from_another_without_a_broker(
    database: WorkerDatabase, queue: Queue, tmp_path: Path
) -> None:
    school_day(database, 1, 10)
    with FaultProxy(HOST, PORT) as proxy, WorkerProcess(tmp_path / "two", **settings(database, queue)) as two:
        wait_until(lambda: published(database), "the second worker publishes")
        with WorkerProcess(tmp_path / "one", **settings(database, queue, port=proxy.port)) as one:
            wait_until(lambda: "started" in one.log() and proxy.connections > 0, "the first worker is connected")
            proxy.refuse = True
            school_day(database, 11, 10)
            wait_until(lambda: published(database), "the worker with a broker publishes")
            assert not one.ended, one.log()
        assert not two.ended, two.log()

    check(queue.take(), 20, repeated=True)


def test_a_row_that_cannot_be_rendered_is_set_aside(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    bad = database.add_events([("evil", "s1", seq) for seq in range(1, 3)])
    database.rows("UPDATE events SET received_ms = %s, best_ms = %s WHERE id = %s", 2**62, -(2**62), bad[0])
    database.rows("UPDATE events SET data = %s WHERE id = %s", '{"n": ', bad[1])
    database.add_events([("pibook-1", "s1", seq) for seq in range(2, 12)])

    with WorkerProcess(tmp_path / "log", **settings(database, queue), message_events="1") as worker:
        wait_until(lambda: published(database), "everything is published")
        assert worker.stop() == 0

    taken = queue.take()
    good = [event["seq"] for message in taken for event in message.events if event["device_id"] == "pibook-1"]
    assert good == list(range(1, 12))
    assert all(len(message.events) == 1 for message in taken)
    skipped = [json.loads(line) for line in worker.log().splitlines() if "event skipped" in line]
    shown = {event["id"] for message in taken for event in message.events}
    assert {line["event_id"] for line in skipped} == set(bad) - shown, "what is not published is logged"


def test_once_publishes_everything_stored(database: WorkerDatabase, queue: Queue) -> None:
    school_day(database, 1, 10)

    done = run_worker("--once", **settings(database, queue))

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    check(queue.take(), 10, repeated=False)
    again = run_worker("--once", "--from", "1", **settings(database, queue))
    assert again.returncode == 0, again.stderr
    check(queue.take(), 10, repeated=False)
    skipped = run_worker("--once", "--from", "now", **settings(database, queue))
    assert skipped.returncode == 0, skipped.stderr
    assert queue.take() == []


def test_once_fails_while_the_broker_is_unavailable(database: WorkerDatabase, queue: Queue) -> None:
    school_day(database, 1, 1)
    with FaultProxy(HOST, PORT) as proxy:
        proxy.refuse = True
        done = run_worker("--once", **settings(database, queue, port=proxy.port))

    assert done.returncode == 1
    assert "the events stay in the database and are published later" in done.stderr
    assert "Traceback" not in done.stderr


def test_publishing_continues_when_the_database_is_back(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    with FaultProxy(*database.server[:2]) as proxy:
        proxy.refuse = True
        through = settings(database, queue) | {"database_url": database.through(proxy.port)}
        with WorkerProcess(tmp_path / "log", **through) as worker:
            wait_until(lambda: "PostgreSQL is unavailable" in worker.log(), "the worker waits for its database")
            proxy.refuse = False
            school_day(database, 1, 10)
            wait_until(lambda: published(database), "everything is published")
            proxy.cut()
            school_day(database, 11, 10)
            wait_until(lambda: published(database), "everything is published again")
            assert worker.stop() == 0

    check(queue.take(), 20, repeated=True)


@pytest.mark.parametrize("behind_pgbouncer", [False, True], ids=["directly", "behind PgBouncer"])
def test_two_workers_publish_each_event_once(
    database: WorkerDatabase, queue: Queue, tmp_path: Path, behind_pgbouncer: bool
) -> None:
    """Behind PgBouncer nothing outlives a transaction: no prepared statement, no lock, no time limit."""
    chosen = settings(database, queue)
    with ExitStack() as closing:
        if behind_pgbouncer:
            port = closing.enter_context(pgbouncer(*database.server))
            chosen["database_url"] = database.through(port)
        one, two = (closing.enter_context(WorkerProcess(tmp_path / name, **chosen)) for name in ("one", "two"))
        wait_until(lambda: "started" in one.log() and "started" in two.log(), "both started")
        for part in range(10):
            school_day(database, part * 20 + 1, 20)
        wait_until(lambda: published(database), "everything is published")
        assert (one.stop(), two.stop()) == (0, 0)

    check(queue.take(), 200, repeated=False)
    assert "unavailable, retrying" not in one.log() + two.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker(database: WorkerDatabase, queue: Queue, tmp_path: Path, number: signal.Signals) -> None:
    with WorkerProcess(tmp_path / "log", **settings(database, queue)) as worker:
        wait_until(lambda: "started" in worker.log(), "the worker started")
        assert worker.end(number) == 0
    assert '"message":"stopped"' in worker.log()


def refused(*arguments: str, **chosen: str) -> "subprocess.CompletedProcess[str]":
    done = run_worker(*arguments, **chosen)
    assert "Traceback" not in done.stderr
    return done


def test_sqlite_is_refused(tmp_path: Path) -> None:
    done = refused(database_url=f"sqlite:///{tmp_path}/receiver.db")
    assert done.returncode == 2
    assert "is not PostgreSQL, which a worker needs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_broker_must_be_named(database: WorkerDatabase) -> None:
    done = refused(database_url=database.url)
    assert done.returncode == 2
    assert "amqp_url is not set" in done.stderr


def test_a_database_without_tables_is_refused(template: str) -> None:
    with fresh_database() as url:
        done = refused(database_url=url, amqp_url=URL)
    assert done.returncode == 1
    assert "Run: pisync-receiver migrate" in done.stderr


def test_an_invalid_start_is_refused(database: WorkerDatabase) -> None:
    done = refused("--from", "yesterday", database_url=database.url, amqp_url=URL)
    assert done.returncode == 2
    assert "is neither an event's id" in done.stderr
