"""The primary dies, its synchronous standby takes over: what was acknowledged is there, and nothing is there twice."""

import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from pisync_common.models import Receipt
from pisync_receiver.store import StoredSyncEvent
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import PostgresStore, open_store
from tests.support.looped import LoopedStore
from tests.support.postgres_cluster import STANDBY, USER, Cluster, cluster, needs_cluster
from tests.support.receiver_process import wait_until
from tests.support.stores.made import NOON, batch, report, stored_seqs

pytestmark = needs_cluster

DEVICES = ("pibook-1", "pibook-2")


@pytest.fixture
def pair() -> Iterator[tuple[Cluster, Cluster]]:
    """A primary whose commits wait for its standby, and the standby."""
    with (
        cluster("wal_level = replica") as primary,
        cluster("synchronous_standby_names = ''", standby_of=primary) as standby,
    ):
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'".encode())
            connection.execute("SELECT pg_reload_conf()")

            def synchronous() -> bool:
                return connection.execute("SELECT sync_state FROM pg_stat_replication").fetchall() == [("sync",)]

            wait_until(synchronous, "commits wait for the standby")
        yield primary, standby


class Load:
    """One device that sends a batch and a report without a key, again and again."""

    def __init__(self, store: PostgresStore, device: str) -> None:
        self.device = device
        self.watermark = 0
        self.report_ids: list[int] = []
        self._store = store
        self._thread = threading.Thread(target=self._run)
        self._enough = threading.Event()
        self._thread.start()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._enough.is_set():
            seq = self.watermark + 1
            events = batch(range(seq, seq + 20), device=self.device)
            told, receipt = self._store.write([report(NOON + seq, device=self.device), events])
            if isinstance(told, StoredSyncEvent):
                self.report_ids.append(told.id)
            if isinstance(receipt, Receipt):
                self.watermark = receipt.watermark


def further(loads: list[Load], reports: int) -> None:
    """Wait until of each device so many more are acknowledged."""
    wanted = {load.device: len(load.report_ids) + reports for load in loads}
    wait_until(lambda: all(len(load.report_ids) >= wanted[load.device] for load in loads), "every device goes on")


def test_a_synchronous_standby_takes_over_with_all_that_was_acknowledged(pair: tuple[Cluster, Cluster]) -> None:
    primary, standby = pair
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = PostgresUrl(conninfo=f"postgresql://{USER}@{hosts}/postgres?target_session_attrs=read-write")
    open_store(url, create=True).close()
    with closing(LoopedStore(url, patience_s=60)) as store:
        loads = [Load(store, device) for device in DEVICES]
        try:
            further(loads, 5)
            primary.kill()
            standby.promote()
            further(loads, 5)
        finally:
            for load in loads:
                load.stop()
        for load in loads:
            assert stored_seqs(store, device=load.device) == list(range(1, load.watermark + 1))
            assert sorted(row.id for row in store.history(load.device, limit=100_000).rows) == sorted(load.report_ids)
