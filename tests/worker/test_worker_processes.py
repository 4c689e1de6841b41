"""Real workers that are killed, cut off and doubled: nothing is missed, duplicates can be told, order holds."""

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.ports import free_port
from tests.support.postgres import fresh_database
from tests.support.receiver_process import wait_until
from tests.support.worker.broker import HOST, PORT, URL, Queue, Taken
from tests.support.worker.database import WorkerDatabase
from tests.support.worker.pgbouncer import pgbouncer
from tests.support.worker.process import WorkerProcess, once, run_worker
from tests.support.worker.webhook import Webhook

DEVICES = 7


def settings(database: WorkerDatabase, queue: Queue, *, port: int = PORT) -> dict[str, str]:
    return {
        "database_url": database.url,
        "amqp_url": URL.replace(str(PORT), str(port)),
        "amqp_exchange": queue.name,
        "amqp_queue": queue.name,
        "message_events": "3",
    }


def school_day(database: WorkerDatabase, first: int, count: int) -> None:
    """So many events of each device, a few at a time, as receivers commit them."""
    events = [(f"pibook-{device}", "s1", seq) for seq in range(first, first + count) for device in range(DEVICES)]
    for start in range(0, len(events), 25):
        database.add_events(events[start : start + 25])


def handed_on(database: WorkerDatabase) -> bool:
    return database.position("rabbitmq") == int(database.one("SELECT last FROM arrival_counter"))


def check(taken: Iterable[Taken], last_seq: int, *, repeated: bool) -> None:
    """Everything is there; per device the first of each arrives in order; what is double is the same message."""
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
    assert len(once_each) == len(set(once_each)) == DEVICES * last_seq, "dropping double ids leaves each event once"
    if not repeated:
        assert len(messages) == len(events_of)


def test_a_broker_that_is_away_misses_nothing(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    school_day(database, 1, 20)
    with FaultProxy(HOST, PORT) as proxy:
        proxy.refuse = True
        with WorkerProcess(tmp_path / "log", **settings(database, queue, port=proxy.port)) as worker:
            wait_until(lambda: "waiting and trying again" in worker.log(), "the worker says that the broker is away")
            school_day(database, 21, 20)
            assert database.position("rabbitmq") == 0
            proxy.refuse = False
            wait_until(lambda: handed_on(database), "all is handed on")
            proxy.refuse = True
            school_day(database, 41, 20)
            wait_until(lambda: worker.log().count("waiting and trying again") == 2, "the broker is away again")
            proxy.refuse = False
            wait_until(lambda: handed_on(database), "all is handed on")
            assert worker.stop() == 0
        lines = [json.loads(line) for line in worker.log().splitlines()]

    check(queue.take(), 60, repeated=True)
    told = [line["message"] for line in lines if line.get("duty") == "publish"]
    assert [re.match("waiting|works", message) is not None for message in told] == [True] * 4
    assert [message.split()[0] for message in told] == ["waiting", "works", "waiting", "works"]
    assert "guest:guest" not in worker.log()


def test_a_connection_cut_at_any_byte_misses_nothing(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    school_day(database, 1, 40)
    with FaultProxy(HOST, PORT) as proxy:
        proxy.cut_up_after = 20_000
        with WorkerProcess(tmp_path / "log", **settings(database, queue, port=proxy.port)) as worker:
            wait_until(lambda: "waiting and trying again" in worker.log(), "the connection was cut")
            proxy.heal()
            wait_until(lambda: handed_on(database), "all is handed on")

    check(queue.take(), 40, repeated=True)


def test_killed_workers_miss_nothing_and_repeat_the_same_messages(
    database: WorkerDatabase, queue: Queue, tmp_path: Path
) -> None:
    with FaultProxy(HOST, PORT) as proxy:
        worker = WorkerProcess(tmp_path / "log", **settings(database, queue, port=proxy.port))
        for part in range(4):
            school_day(database, part * 30 + 1, 30)
            proxy.rate = 40_000
            before = proxy.bytes_up
            worker.start()
            wait_until(lambda before=before: proxy.bytes_up > before + 12_000, "messages are under way")  # type: ignore[misc]
            worker.kill()
            assert not handed_on(database)
        proxy.heal()
        with worker:
            wait_until(lambda: handed_on(database), "all is handed on")

    check(queue.take(), 120, repeated=True)


def test_two_workers_hand_each_event_on_once(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    with (
        WorkerProcess(tmp_path / "one", **settings(database, queue)) as one,
        WorkerProcess(tmp_path / "two", **settings(database, queue)) as two,
    ):
        wait_until(lambda: "started" in one.log() and "started" in two.log(), "both work")
        for part in range(10):
            school_day(database, part * 20 + 1, 20)
        wait_until(lambda: handed_on(database), "all is handed on")
        assert (one.stop(), two.stop()) == (0, 0)

    check(queue.take(), 200, repeated=False)


def test_another_worker_takes_over_from_one_that_stands_still(
    database: WorkerDatabase, queue: Queue, tmp_path: Path
) -> None:
    school_day(database, 1, 10)
    with FaultProxy(HOST, PORT) as proxy, WorkerProcess(tmp_path / "two", **settings(database, queue)) as two:
        wait_until(lambda: handed_on(database), "the second worker publishes")
        with WorkerProcess(tmp_path / "one", **settings(database, queue, port=proxy.port)) as one:
            wait_until(lambda: "started" in one.log() and proxy.connections > 0, "the first worker is there")
            proxy.refuse = True
            school_day(database, 11, 10)
            wait_until(lambda: handed_on(database), "whoever has a broker hands on")
            assert not one.ended, one.log()
        assert not two.ended, two.log()

    check(queue.take(), 20, repeated=True)


def test_once_hands_on_what_there_is(database: WorkerDatabase, queue: Queue) -> None:
    school_day(database, 1, 10)

    done = once(**settings(database, queue))

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    check(queue.take(), 10, repeated=False)
    again = once("--from", "1", **settings(database, queue))
    assert again.returncode == 0, again.stderr
    check(queue.take(), 10, repeated=False)
    skipped = once("--from", "now", **settings(database, queue))
    assert skipped.returncode == 0, skipped.stderr
    assert queue.take() == []


def test_once_says_what_is_left(database: WorkerDatabase, queue: Queue) -> None:
    school_day(database, 1, 1)
    with FaultProxy(HOST, PORT) as proxy:
        proxy.refuse = True
        done = once(**settings(database, queue, port=proxy.port))

    assert done.returncode == 1
    assert "the events stay in the database and go again" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_database_may_come_back(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    with FaultProxy(*database.server[:2]) as proxy:
        proxy.refuse = True
        through = settings(database, queue) | {"database_url": database.through(proxy.port)}
        with WorkerProcess(tmp_path / "log", **through) as worker:
            wait_until(lambda: "PostgreSQL is away" in worker.log(), "the worker waits for its database")
            proxy.refuse = False
            school_day(database, 1, 10)
            wait_until(lambda: handed_on(database), "all is handed on")
            proxy.cut()
            school_day(database, 11, 10)
            wait_until(lambda: handed_on(database), "all is handed on again")
            assert worker.stop() == 0

    check(queue.take(), 20, repeated=True)


def test_workers_share_the_few_connections_of_pgbouncer(
    database: WorkerDatabase, queue: Queue, webhook: Webhook, tmp_path: Path
) -> None:
    """In transaction mode nothing outlives a transaction: not a prepared statement, a lock, or a time limit."""
    with pgbouncer(*database.server) as port:
        chosen = settings(database, queue) | {
            "database_url": database.through(port),
            "alert_urls": webhook.url,
            "digest_window": "0s",
            "digest_over": "1000",
        }
        with (
            WorkerProcess(tmp_path / "one", **chosen) as one,
            WorkerProcess(tmp_path / "two", **chosen) as two,
        ):
            for part in range(5):
                school_day(database, part * 20 + 1, 20)
                database.crossing(f"pibook-{part}")
            wait_until(lambda: handed_on(database), "all is handed on")
            wait_until(lambda: len(webhook.told) == 5, "all is told")
            assert (one.stop(), two.stop()) == (0, 0)

    check(queue.take(), 100, repeated=False)
    assert sorted(webhook.titles()) == [f"pibook-{part} keeps failing" for part in range(5)]
    assert "waiting and trying again" not in one.log() + two.log()


def test_the_figures_can_be_read(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    port = free_port()
    where = {"metrics_address": f"127.0.0.1:{port}"}
    school_day(database, 1, 10)
    with WorkerProcess(tmp_path / "log", **settings(database, queue), **where) as worker:
        wait_until(lambda: handed_on(database), "all is handed on")
        wait_until(lambda: figures(port).get("pisync_worker_lag_events") == 0, "the lag is told")
        read = figures(port)
        second = run_worker(["--once"], settings(database, queue) | where)
        assert worker.stop() == 0

    assert read["pisync_worker_events_published_total"] == 70
    assert read["pisync_worker_broker_connected"] == 1
    assert read["pisync_worker_alerts_waiting"] == 0
    assert second.returncode == 1
    assert "choose another with --metrics-address" in second.stderr


def figures(port: int) -> Mapping[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


def test_months_are_made_ahead(database: WorkerDatabase) -> None:
    months = "SELECT count(*) FROM pg_class WHERE relname ~ '^events_0_[0-9]{6}$'"
    for name in database.rows("SELECT relname FROM pg_class WHERE relname ~ '^(sync_)?events_[0-7]_[0-9]{6}$'"):
        database.rows(f"DROP TABLE {name[0]}")
    assert database.one(months) == 0

    done = once(database_url=database.url)

    assert done.returncode == 0, done.stderr
    assert database.one(months) == 3


def test_a_month_that_waits_for_a_backup_is_left_for_later_and_receivers_go_on(database: WorkerDatabase) -> None:
    for name in database.rows("SELECT relname FROM pg_class WHERE relname ~ '^(sync_)?events_[0-7]_[0-9]{6}$'"):
        database.rows(f"DROP TABLE {name[0]}")
    with psycopg.connect(database.url) as backup:
        backup.execute("LOCK TABLE events_0 IN ACCESS SHARE MODE")  # as pg_dump holds it
        done = once(database_url=database.url)
        database.add_events([("pibook-1", "s1", 1)])

    assert done.returncode == 1
    assert "PostgreSQL is away (LockNotAvailable)" in done.stderr
    assert once(database_url=database.url).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(database: WorkerDatabase, tmp_path: Path, number: signal.Signals) -> None:
    with WorkerProcess(tmp_path / "log", database_url=database.url) as worker:
        wait_until(lambda: "started" in worker.log(), "the worker works")
        assert worker.end(number) == 0
    assert '"message":"stopped"' in worker.log()


def refused(*arguments: str, **chosen: str) -> "subprocess.CompletedProcess[str]":
    done = run_worker(arguments, chosen)
    assert "Traceback" not in done.stderr
    return done


def test_sqlite_needs_no_worker(tmp_path: Path) -> None:
    done = refused(database_url=f"sqlite:///{tmp_path}/receiver.db")
    assert done.returncode == 2
    assert "is not PostgreSQL, which a worker needs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_the_schema_is_named(template: str) -> None:
    with fresh_database() as url:
        done = refused(database_url=url)
    assert done.returncode == 1
    assert "Run: pisync-receiver migrate" in done.stderr


def test_from_needs_a_broker(database: WorkerDatabase) -> None:
    done = refused("--from", "1", database_url=database.url)
    assert done.returncode == 2
    assert "no broker is named" in done.stderr


def test_a_from_that_is_no_event(database: WorkerDatabase) -> None:
    done = refused("--from", "yesterday", database_url=database.url)
    assert done.returncode == 2
    assert "not an event's id" in done.stderr


def test_an_unknown_alert_url_is_not_shown(database: WorkerDatabase) -> None:
    done = refused(database_url=database.url, alert_urls="nosuchthing://hunter2@host")
    assert done.returncode == 2
    assert "number 1 is no URL that Apprise knows" in done.stderr
    assert "hunter2" not in done.stderr
