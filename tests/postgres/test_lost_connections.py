"""PostgreSQL goes away at the worst moments: what was acknowledged is there, and nothing is there twice."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pisync_common.models import Receipt
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import EventFilter, StoredSyncEvent
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import PostgresStore, on_loop
from pisync_receiver.store.postgres.writing import Writer
from tests.support.commit_proxy import CommitProxy, Fault
from tests.support.looped import LoopedStore, open_looped
from tests.support.postgres import run
from tests.support.postgres_cluster import Cluster, cluster, needs_cluster
from tests.support.receiver_process import ReceiverProcess, wait_until
from tests.support.stores.made import NOON, batch, event, report, send, stored_seqs, tell

pytestmark = needs_cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


def opened(url: str, **how: Any) -> "closing[PostgresStore]":
    return closing(open_looped(url, **how))


@pytest.mark.parametrize("faults", [["before"], ["after"], ["before", "before", "after"]])
def test_a_connection_lost_at_the_commit_stores_once_and_answers_as_ever(server: Cluster, faults: list[Fault]) -> None:
    direct = server.create("at_" + "_".join(faults))
    with CommitProxy(server.port) as proxy, opened(direct.replace(str(server.port), str(proxy.port))) as store:
        proxy.faults += faults
        first = tell(store, report(NOON))  # without a key: were it written again, nobody could tell
        proxy.faults += faults
        receipt = send(store, batch(range(1, 51)))
        assert proxy.broken == 2 * len(faults)
        assert (receipt.stored, receipt.duplicates, receipt.watermark) == (50, 0, 50)
        assert [row.id for row in store.history("pibook-1").rows] == [first.id]
        assert stored_seqs(store) == list(range(1, 51))


def test_a_server_that_falls_silent_is_given_up_in_time_and_nothing_is_stored_twice(server: Cluster) -> None:
    """The line stays up, so that neither a time-out of the server's nor one of TCP's ends the wait."""
    direct = server.create("silent")
    with (
        CommitProxy(server.port) as proxy,
        opened(direct.replace(str(server.port), str(proxy.port)), patience_s=0.5) as store,
    ):
        first = tell(store, report(NOON))
        proxy.faults += ["silent"]
        with pytest.raises(StoreUnusable):
            tell(store, report(NOON + 1))
        second = tell(store, report(NOON + 2))
        assert [row.id for row in store.history("pibook-1").rows] == [second.id, first.id]


def test_a_query_that_a_silent_server_does_not_answer_ends_in_time(server: Cluster) -> None:
    direct = server.create("hushed")
    with (
        CommitProxy(server.port) as proxy,
        opened(direct.replace(str(server.port), str(proxy.port)), patience_s=0.5, silence_s=0.2) as store,
    ):
        tell(store, report(NOON))
        proxy.hush.set()
        for ask in (lambda: store.device("pibook-1"), store.fleet):
            with pytest.raises(StoreUnusable, match="cannot be read"):
                ask()
        proxy.hush.clear()
        wait_until(lambda: can_read(store), "it reads again")


def can_read(store: PostgresStore) -> bool:
    try:
        return store.device("pibook-1") is not None
    except StoreUnusable:
        return False


def test_a_groups_mark_is_its_own_until_somebody_has_looked(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another group is stored between the loss of a commit's answer and the look whether it was made."""
    direct = server.create("marks")
    look = Writer._was_committed
    with (
        CommitProxy(server.port) as proxy,
        opened(direct.replace(str(server.port), str(proxy.port))) as store,
    ):

        def look_later(writer: Writer, *asked: Any) -> bool:
            on_loop.wait_for(store.awrite([report(NOON, device="pibook-2")]))
            return look(writer, *asked)

        monkeypatch.setattr(Writer, "_was_committed", look_later)
        for device in ("pibook-2", "pibook-1"):
            proxy.faults += ["after"] if device == "pibook-1" else []
            tell(store, report(NOON, device=device))
        assert (proxy.broken, len(store.history("pibook-1").rows), len(store.history("pibook-2").rows)) == (1, 1, 2)


def test_a_mark_that_may_be_locked_still_is_used_by_no_later_group(server: Cluster) -> None:
    url = server.create("locked_mark")
    with opened(url, patience_s=0.5) as store, psycopg.connect(url) as other:
        tell(store, report(NOON))
        assert other.execute("SELECT FROM marks FOR UPDATE").rowcount == 1
        with pytest.raises(StoreUnusable):
            tell(store, report(NOON + 1))
        tell(store, report(NOON + 2))
        assert len(store.history("pibook-1").rows) == 2


def test_while_a_group_waits_for_the_server_the_event_loop_goes_on(server: Cluster) -> None:
    url = server.create("waiting")
    with opened(url) as store, psycopg.connect(url) as other:
        assert isinstance(store, LoopedStore)
        tell(store, report(NOON))
        other.execute("SELECT FROM devices FOR UPDATE")
        waiting = store.begin([report(NOON + 1)])
        wait_until(lambda: waits_for_a_lock(url), "the group waits for its device")
        store.beat()
        assert not waiting.done()
        other.rollback()
        assert waiting.result(30)
        server.stop("immediate")
        try:
            waiting = store.begin([report(NOON + 2)])
            for _ in range(3):
                store.beat()
            assert not waiting.done()
        finally:
            server.start()
        (outcome,) = waiting.result(30)
        assert isinstance(outcome, StoredSyncEvent)


def waits_for_a_lock(url: str) -> bool:
    return bool(
        run(url, "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    )


def test_a_commit_that_a_crash_undid_is_not_taken_for_anothers(server: Cluster) -> None:
    """The server gives the number of a transaction that it forgot to another."""
    direct = server.create("undone")
    with (
        CommitProxy(server.port) as proxy,
        opened(direct.replace(str(server.port), str(proxy.port)), patience_s=60) as store,
        opened(direct, patience_s=60) as other,
    ):
        tell(store, report(NOON))
        tell(other, report(NOON, device="pibook-2"))

        def meanwhile() -> None:
            server.restart("immediate")
            for turn in range(20):
                tell(other, report(NOON + turn, device="pibook-2"))

        proxy.meanwhile = meanwhile
        proxy.faults.append("before")
        told = tell(store, report(NOON + 1))
        assert proxy.broken == 1
        rows = store.history("pibook-1").rows
        assert [row.at_ms for row in rows] == [NOON + 1, NOON]
        assert rows[0].id == told.id


def test_crashes_of_the_server_under_load_lose_and_double_nothing(server: Cluster) -> None:
    url = server.create("crashes")
    acknowledged: dict[str, list[int]] = {}
    reports: dict[str, list[int]] = {}
    enough = threading.Event()

    def load(store: PostgresStore, device: str) -> None:
        seq = 1
        while not enough.is_set():
            told, receipt = store.write([report(NOON + seq, device=device), batch(range(seq, seq + 20), device=device)])
            if isinstance(told, StoredSyncEvent):
                reports[device].append(told.id)
            if isinstance(receipt, Receipt):
                acknowledged[device].append(receipt.watermark)
                seq = receipt.watermark + 1

    with opened(url, patience_s=60) as one, opened(url, patience_s=60) as other:
        threads = []
        for number in range(4):
            device = f"pibook-{number}"
            acknowledged[device], reports[device] = [], []
            threads.append(threading.Thread(target=load, args=((one, other)[number % 2], device)))
        for thread in threads:
            thread.start()
        for _ in range(6):
            before = {device: len(seen) for device, seen in acknowledged.items()}
            wait_until(
                lambda before=before: all(len(acknowledged[device]) > count + 3 for device, count in before.items()),  # type: ignore[misc]
                "every device goes on",
            )
            server.restart("immediate")
        enough.set()
        for thread in threads:
            thread.join()
        for device, watermarks in acknowledged.items():
            assert stored_seqs(one, device=device) == list(range(1, watermarks[-1] + 1))
            rows = one.history(device, limit=100_000).rows
            assert sorted(row.id for row in rows) == sorted(reports[device])


def test_a_server_that_stays_away_is_given_up_in_time_and_the_store_comes_back_by_itself(server: Cluster) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += 1

    url = server.create("away")
    with opened(url, patience_s=3, clock=lambda: now[0], sleep=sleep) as store:
        tell(store, report(NOON))
        server.stop("immediate")
        with pytest.raises(StoreUnusable, match="cannot be written"):
            send(store, batch([1]))
        assert 1 <= len(slept) <= 4
        with pytest.raises(StoreUnusable, match="cannot be read"):
            store.device("pibook-1")
        server.start()
        now[0] = 0.0
        assert send(store, batch([1])).watermark == 1


@pytest.mark.parametrize("code", ["53100", "55P03", "57014"], ids=["disk full", "lock not had", "cancelled"])
def test_what_the_server_refuses_at_the_end_is_given_up_in_time_and_nothing_is_stored(
    server: Cluster, code: str
) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += 1

    url = server.create(f"refused_{code.lower()}")
    with (
        opened(url, patience_s=3, clock=lambda: now[0], sleep=sleep) as store,
        psycopg.connect(url, autocommit=True) as direct,
    ):
        direct.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$".encode()
        )
        for table in ("events", "sync_events"):
            direct.execute(
                f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse()".encode()
            )
        for submission in (batch([1, 2]), report(NOON)):
            now[0] = 0.0
            slept.clear()
            (outcome,) = store.write([submission])
            assert isinstance(outcome, StoreUnusable)
            assert 1 <= len(slept) <= 4
        for table in ("events", "sync_events"):
            direct.execute(f"DROP TRIGGER refuse ON {table}".encode())
        now[0] = 0.0
        assert send(store, batch([1, 2])).stored == 2
        assert len(store.history("pibook-1").rows) == 0


def test_those_of_a_group_that_are_stored_one_by_one_have_its_time_together(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tries = [0.0], []
    carry_out = Writer._try

    def try_slowly(writer: Writer, *what: Any) -> Any:
        now[0] += 4
        tries.append(what)
        return carry_out(writer, *what)

    url = server.create("one_by_one")
    with opened(url, patience_s=10, clock=lambda: now[0]) as store:
        run(
            url,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22000'; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON sync_events FOR EACH ROW WHEN (NEW.device_id = 'pibook-1') "
            "EXECUTE FUNCTION refuse()",
        )
        monkeypatch.setattr(Writer, "_try", try_slowly)
        outcomes = store.write([report(NOON, device=f"pibook-{number}") for number in range(1, 101)])
    assert len(tries) == 3  # all together, the first by itself, the second by itself
    assert [type(one) for one in outcomes] == [StoreUnusable, StoredSyncEvent, *[StoreUnusable] * 98]


def test_a_writer_whose_last_commit_is_still_under_way_gives_up_in_time(server: Cluster) -> None:
    """As while a standby does not answer: the server keeps the writer's mark locked, though the connection is gone."""
    url = server.create("under_way")
    stored, locked = threading.Event(), threading.Event()
    outcomes: list[object] = []
    with opened(url, patience_s=0.5) as store, psycopg.connect(url) as other:

        def write() -> None:
            outcomes.extend(store.write([batch([1])]))
            stored.set()
            locked.wait()
            outcomes.extend(store.write([batch([2])]))

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        assert stored.wait(30)
        assert other.execute("SELECT FROM marks FOR UPDATE").rowcount == 1
        locked.set()
        try:
            wait_until(lambda: not writer.is_alive(), "the writer gives up")
        finally:
            other.rollback()
        assert stored_seqs(store) == [1]
        assert send(store, batch([2])).stored == 1
    assert [type(one) for one in outcomes] == [Receipt, StoreUnusable]


@pytest.mark.parametrize("asked", ["", "?client_encoding=latin1"], ids=["database", "database and address"])
def test_text_is_text_whatever_the_role_was_set_to(server: Cluster, asked: str) -> None:
    url = server.create(f"latin{len(asked)}")
    with psycopg.connect(url, autocommit=True) as direct:
        direct.execute(f"ALTER DATABASE latin{len(asked)} SET client_encoding = 'LATIN1'".encode())
    with opened(url + asked) as store:
        for seq in (1, 2, 3):
            send(store, batch([event(seq, note="Möhren, 木")], agent="pisync/Ö", bad=[]))
        (row, *_) = store.events(EventFilter()).rows
        device = store.device("pibook-1")
        assert device is not None
        assert (device.agent, json.loads(row.data or "")) == ("pisync/Ö", {"note": "Möhren, 木"})


def test_a_server_that_only_reads_takes_nothing_and_says_so(server: Cluster) -> None:
    url = server.create("readonly")
    with opened(url, patience_s=0.2) as store:
        tell(store, report(NOON))
        read_only = url + "?options=-cdefault_transaction_read_only%3Don"
        with closing(LoopedStore(PostgresUrl(conninfo=read_only), patience_s=0.2)) as standby:
            with pytest.raises(StoreUnusable):
                send(standby, batch([1]))
            with pytest.raises(StoreUnusable):
                standby.ready()
        assert send(store, batch([1])).stored == 1


def test_the_receiver_answers_503_meanwhile_and_goes_on_afterwards(server: Cluster, tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path / "receiver", database_url=server.create("http")) as receiver:
        code = receiver.enrollment_code()
        enrolled = httpx.post(receiver.url + "/api/enroll", json={"code": code, "device_id": "pibook-1"})
        headers = {"Authorization": f"Bearer {enrolled.json()['token']}"}
        body = {
            "device_id": "pibook-1",
            "stream": "stream-1",
            "events": [{"seq": 1, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00Z"}],
        }

        def post() -> httpx.Response:
            return httpx.post(receiver.url + "/api/events", json=body, headers=headers, timeout=60)

        assert httpx.get(receiver.url + "/readyz", timeout=60).status_code == 200
        server.stop("immediate")
        try:
            refused = post()
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert httpx.get(receiver.url + "/readyz", timeout=60).status_code == 503
            assert httpx.get(receiver.url + "/healthz").status_code == 200
        finally:
            server.start()
        answer = post()
        assert answer.status_code == 200
        assert answer.json()["watermark"] == 1
