"""A primary dies and its synchronous standby takes over: what was acknowledged is stored, nothing is stored twice."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from tests.postgres.cluster import STANDBY, USER, Cluster, cluster, needs_cluster
from tests.postgres.test_lost_connections import load, until_longer
from tests.support.postgres import history_ids, on_a_loop, opened, stored_seqs
from tests.support.processes import wait_until

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


@on_a_loop
async def test_synchronous_standby_takes_over_with_everything_acknowledged(pair: tuple[Cluster, Cluster]) -> None:
    primary, standby = pair
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = f"postgresql://{USER}@{hosts}/postgres?target_session_attrs=read-write"
    ids: list[list[int]] = [[] for _ in DEVICES]
    watermarks: list[list[int]] = [[0] for _ in DEVICES]
    enough = asyncio.Event()
    async with opened(url, patience_s=60) as store:
        async with asyncio.TaskGroup() as group:
            for number, device in enumerate(DEVICES):
                group.create_task(load(store, device, enough, ids[number], watermarks[number]))
            await until_longer(ids, 5)
            primary.kill()
            await asyncio.to_thread(standby.promote)
            await until_longer(ids, 5)
            enough.set()
        for number, device in enumerate(DEVICES):
            assert await stored_seqs(store, device=device) == list(range(1, watermarks[number][-1] + 1))
            assert sorted(await history_ids(store, device=device)) == sorted(ids[number])
