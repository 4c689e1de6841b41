"""PostgreSQL goes away at the worst moments: what was acknowledged is stored, and nothing is stored twice."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pisync_common.models import Receipt
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import CodeCreate, Enroll, TokenCreate
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.postgres import PostgresStore, PostgresUrl
from tests.postgres.cluster import Cluster, cluster, needs_cluster
from tests.postgres.commit_proxy import CommitProxy, Fault
from tests.support.postgres import history_ids, on_a_loop, opened, run, send, stored_seqs, sync, written
from tests.support.processes import ReceiverProcess, wait_until
from tests.support.submissions import CRITERIA, NOON, batch, event, sync_event

pytestmark = needs_cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


def through(proxy: CommitProxy, server: Cluster, direct: str) -> str:
    return direct.replace(str(server.port), str(proxy.port))


class FakeTime:
    """A clock that moves by a second in each sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps = 0

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self.now += 1

    def restart(self) -> None:
        self.now, self.sleeps = 0.0, 0

    def options(self, patience_s: float) -> dict[str, Any]:
        return {"patience_s": patience_s, "clock": lambda: self.now, "sleep": self.sleep}


@pytest.mark.parametrize("faults", [["before"], ["after"], ["before", "before", "after"], ["after", "after"]])
@on_a_loop
async def test_connection_lost_at_the_commit_stores_once(server: Cluster, faults: list[Fault]) -> None:
    direct = server.create("at_" + "_".join(faults))
    with CommitProxy(server.port) as proxy:
        async with opened(through(proxy, server, direct)) as store:
            proxy.faults += faults
            first = await sync(store, sync_event(NOON))  # without a key: the store has to recognise it
            proxy.faults += faults
            receipt = await send(store, batch(range(1, 51)))
            assert proxy.broken == 2 * len(faults)
            assert receipt.stored + receipt.duplicates == 50
            assert receipt.watermark == 50
            assert await history_ids(store) == [first.id]
            assert await stored_seqs(store) == list(range(1, 51))
            device = await store.device("pibook-1", criteria=CRITERIA)
            assert device is not None
            assert device.conflicts == 0


@on_a_loop
async def test_connection_lost_at_the_commit_uses_an_enrollment_code_once(server: Cluster) -> None:
    with CommitProxy(server.port) as proxy:
        async with opened(through(proxy, server, server.create("enrolled"))) as store:
            proxy.faults += ["after"]
            code = await written(store, CodeCreate(code_hash="code", at_ms=NOON, expires_ms=NOON + 1000, uses=2))
            proxy.faults += ["after"]
            token = await written(store, TokenCreate(scope="admin", token_hash="admin", at_ms=NOON))
            proxy.faults += ["after"]
            wish = Enroll(code_hash="code", device_id="d-1", fallback_device_id="", token_hash="t-1", at_ms=NOON)
            enrolled = await written(store, wish)
            assert proxy.broken == 3
            assert [record.id for record in await store.tokens()] == [token.id, enrolled.token.id]
            assert [(record.id, record.uses_left) for record in await store.codes()] == [(code.id, 1)]


@on_a_loop
async def test_silent_server_is_given_up_and_nothing_is_stored_twice(server: Cluster) -> None:
    """The connection stays up, so that neither the server's time-outs nor TCP's end the wait."""
    with CommitProxy(server.port) as proxy:
        async with opened(through(proxy, server, server.create("silent")), patience_s=0.5, write_s=0.5) as store:
            first = await sync(store, sync_event(NOON))
            proxy.faults += ["silent"]
            with pytest.raises(StoreUnusable, match="whether it was stored is unknown"):
                await sync(store, sync_event(NOON + 1))
            second = await sync(store, sync_event(NOON + 2))
            assert await history_ids(store) == [second.id, first.id]


@on_a_loop
async def test_query_is_given_up_when_the_server_is_silent(server: Cluster) -> None:
    with CommitProxy(server.port) as proxy:
        async with opened(through(proxy, server, server.create("hushed")), patience_s=0.5, read_s=0.2) as store:
            await sync(store, sync_event(NOON))
            proxy.hush.set()
            for query in (store.device("pibook-1", criteria=CRITERIA), store.fleet(criteria=CRITERIA)):
                with pytest.raises(StoreUnusable, match="cannot read"):
                    await query
            proxy.hush.clear()
            for _ in range(100):
                try:
                    assert await store.device("pibook-1", criteria=CRITERIA) is not None
                    break
                except StoreUnusable:
                    continue
            else:
                pytest.fail("it never reads again")


@on_a_loop
async def test_group_that_waits_for_a_lock_does_not_hold_up_another(server: Cluster) -> None:
    url = server.create("waiting")
    async with opened(url) as store:
        await sync(store, sync_event(NOON))
        with psycopg.connect(url) as other:
            other.execute("SELECT FROM devices FOR UPDATE")
            waiting = asyncio.create_task(sync(store, sync_event(NOON + 1)))
            await sync(store, sync_event(NOON, device="pibook-2"))
            assert not waiting.done()
        await waiting
        assert len(await history_ids(store)) == 2


@on_a_loop
async def test_commit_that_a_crash_undid_is_made_again(server: Cluster) -> None:
    direct = server.create("undone")
    with CommitProxy(server.port) as proxy:
        async with opened(through(proxy, server, direct), patience_s=60) as store:
            await sync(store, sync_event(NOON))
            proxy.meanwhile = lambda: server.restart("immediate")
            proxy.faults.append("before")
            second = await sync(store, sync_event(NOON + 1))
            assert proxy.broken == 1
            rows = (await store.history("pibook-1")).rows
            assert rows[0].id == second.id
            assert len(rows) == 2


async def load(store: PostgresStore, device: str, enough: asyncio.Event, ids: list[int], watermarks: list[int]) -> None:
    """Send a batch and a sync event without a key, again and again; note what was acknowledged."""
    while not enough.is_set():
        seq = watermarks[-1] + 1
        told, receipt = await store.write(
            [sync_event(NOON + seq, device=device), batch(range(seq, seq + 20), device=device)]
        )
        if isinstance(told, StoredSyncEvent):
            ids.append(told.id)
        if isinstance(receipt, Receipt):
            watermarks.append(receipt.watermark)


async def until_longer(lists: list[list[int]], by: int) -> None:
    """Poll until each list has grown."""
    wanted = [len(grows) + by for grows in lists]
    async with asyncio.timeout(120):
        while any(len(grows) < length for grows, length in zip(lists, wanted, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@on_a_loop
async def test_crashes_of_the_server_under_load_lose_and_double_nothing(server: Cluster) -> None:
    url = server.create("crashes")
    devices = [f"pibook-{number}" for number in range(4)]
    ids: list[list[int]] = [[] for _ in devices]
    watermarks: list[list[int]] = [[0] for _ in devices]
    enough = asyncio.Event()
    async with opened(url, patience_s=60) as one, opened(url, patience_s=60) as other:
        async with asyncio.TaskGroup() as group:
            for number, device in enumerate(devices):
                group.create_task(load((one, other)[number % 2], device, enough, ids[number], watermarks[number]))
            for _ in range(6):
                await until_longer(watermarks, 3)
                await asyncio.to_thread(server.restart, "immediate")
            await until_longer(watermarks, 1)
            enough.set()
        for number, device in enumerate(devices):
            assert await stored_seqs(one, device=device) == list(range(1, watermarks[number][-1] + 1))
            assert sorted(await history_ids(one, device=device)) == sorted(ids[number])


@on_a_loop
async def test_server_that_stays_away_is_given_up_and_the_store_recovers(server: Cluster) -> None:
    time = FakeTime()
    async with opened(server.create("away"), **time.options(3)) as store:
        await sync(store, sync_event(NOON))
        server.stop("immediate")
        try:
            with pytest.raises(StoreUnusable, match="cannot write"):
                await send(store, batch([1]))
            assert 1 <= time.sleeps <= 4
            with pytest.raises(StoreUnusable, match="cannot read"):
                await store.device("pibook-1", criteria=CRITERIA)
        finally:
            server.start()
        time.restart()
        assert (await send(store, batch([1]))).watermark == 1


@pytest.mark.parametrize("code", ["53100", "55P03", "57014"], ids=["disk full", "lock not available", "cancelled"])
@on_a_loop
async def test_resource_errors_are_retried_until_the_deadline(server: Cluster, code: str) -> None:
    time = FakeTime()
    url = server.create(f"refused_{code.lower()}")
    async with opened(url, **time.options(3)) as store:
        run(
            url,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$",
        )
        for table in ("events", "sync_events"):
            run(url, f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse()")
        for submission in (batch([1, 2]), sync_event(NOON)):
            time.restart()
            (outcome,) = await store.write([submission])
            assert isinstance(outcome, StoreUnusable)
            assert 1 <= time.sleeps <= 4
        for table in ("events", "sync_events"):
            run(url, f"DROP TRIGGER refuse ON {table}")
        time.restart()
        assert (await send(store, batch([1, 2]))).stored == 2
        assert await history_ids(store) == []


def refuse_device(url: str, device: str) -> None:
    """Make the database refuse sync events of one device, as if their rows were wrong."""
    run(
        url,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22000'; END $$; "
        f"CREATE TRIGGER refuse BEFORE INSERT ON sync_events FOR EACH ROW WHEN (NEW.device_id = '{device}') "
        "EXECUTE FUNCTION refuse()",
    )


class CountingStore(PostgresStore):
    """Counts the tries; `slow` is called before each."""

    tries = 0

    def slow(self) -> None:
        pass

    async def _try(self, submissions: Any) -> Any:
        self.tries += 1
        self.slow()
        return await super()._try(submissions)


@on_a_loop
async def test_refused_submission_fails_alone_after_a_logarithmic_number_of_tries(server: Cluster) -> None:
    url = server.create("one_refused")
    async with opened(url):
        refuse_device(url, "pibook-37")
    store = CountingStore(PostgresUrl(conninfo=url))
    await store.open()
    try:
        outcomes = await store.write([sync_event(NOON, device=f"pibook-{number}") for number in range(64)])
    finally:
        await store.aclose()
    assert [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, StoredSyncEvent)] == [37]
    assert isinstance(outcomes[37], StoreUnusable)
    assert store.tries <= 1 + 2 * 6


@on_a_loop
async def test_halves_of_a_group_share_its_deadline(server: Cluster) -> None:
    url, time = server.create("shared_deadline"), FakeTime()
    async with opened(url):
        refuse_device(url, "pibook-0")
    store = CountingStore(PostgresUrl(conninfo=url), **time.options(10))

    def slow() -> None:
        time.now += 4

    store.slow = slow  # type: ignore[method-assign]
    await store.open()
    try:
        outcomes = await store.write([sync_event(NOON, device=f"pibook-{number}") for number in range(64)])
    finally:
        await store.aclose()
    assert store.tries == 3  # all, the first half, the first quarter
    assert all(isinstance(outcome, StoreUnusable) for outcome in outcomes)


@pytest.mark.parametrize("asked", ["", "?client_encoding=latin1"], ids=["database", "database and address"])
@on_a_loop
async def test_text_is_utf8_whatever_the_database_is_set_to(server: Cluster, asked: str) -> None:
    name = f"latin{len(asked)}"
    url = server.create(name)
    run(url, f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'")
    async with opened(url + asked) as store:
        await send(store, batch([event(1, note="Möhren, 木")], agent="pisync/Ö"))
        (record,) = (await store.events(EventFilter())).rows
        device = await store.device("pibook-1", criteria=CRITERIA)
        assert device is not None
        assert (device.agent, json.loads(bytes(record.data))) == ("pisync/Ö", {"note": "Möhren, 木"})


@on_a_loop
async def test_read_only_server_refuses_writes(server: Cluster) -> None:
    url = server.create("readonly")
    async with opened(url, patience_s=0.2) as store:
        await sync(store, sync_event(NOON))
        read_only = url + "?options=-cdefault_transaction_read_only%3Don"
        standby = PostgresStore(PostgresUrl(conninfo=read_only), patience_s=0.2)
        await standby.open()
        try:
            with pytest.raises(StoreUnusable, match="read-only"):
                await send(standby, batch([1]))
            with pytest.raises(StoreUnusable, match="read-only"):
                await standby.ready()
        finally:
            await standby.aclose()
        assert (await send(store, batch([1]))).stored == 1


def test_receiver_answers_503_while_the_server_is_away(server: Cluster, tmp_path: Path) -> None:
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
        ready = receiver.url + "/readyz"
        wait_until(lambda: httpx.get(ready, timeout=60).status_code == 200, "the receiver is ready again")
        answer = post()
        assert answer.status_code == 200
        assert answer.json()["watermark"] == 1
