"""Parts of the devices live on another server: the same answers, and nothing lost or doubled between the two."""

from collections.abc import Iterator
from contextlib import closing
from typing import Final

import psycopg
import pytest
from psycopg import errors

from pisync_common.models import Receipt
from pisync_common.times import now_ms
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import EventFilter, Store
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import PostgresStore
from pisync_receiver.store.queries import queries
from tests.support.commit_proxy import Fault
from tests.support.looped import LoopedStore, open_looped
from tests.support.postgres import run
from tests.support.postgres_cluster import needs_cluster
from tests.support.stores.made import NOON, batch, counts, event, invalid, report, send, stored_seqs, tell
from tests.support.two_servers import TwoServers, two_servers

pytestmark = needs_cluster

DEVICES: Final = [f"pibook-{number}" for number in range(24)]
HOUR: Final = 3_600_000
Divided = tuple[PostgresStore, str, list[str], list[str]]
"""A store of which the even parts are elsewhere; the other server's database; who lives here, and who there."""


def end_of_page(url: str, after: int) -> object:
    """Up to where a worker hands on next."""
    with psycopg.connect(url) as connection:
        sql = queries("postgres", "worker")
        (newest,) = connection.execute(sql["newest"]).fetchone() or (0,)
        values = {"after": after, "newest": newest, "events": 100, "bytes": 1000}
        row = connection.execute(sql["end_of_page"], values).fetchone()
    return None if row is None else row[0]


@pytest.fixture(scope="module")
def servers() -> Iterator[TwoServers]:
    with two_servers() as running:
        yield running


def opened(url: str, patience_s: float = 10) -> "closing[PostgresStore]":
    return closing(LoopedStore(PostgresUrl(conninfo=url), patience_s=patience_s))


def fill(store: Store) -> None:
    """Something of every kind, of every device."""
    for number, device in enumerate(DEVICES):
        send(store, batch([1, 2, 3, 5, event(9, note="term paper")], device=device, bad=[invalid(7)]))
        send(store, batch([event(1, occurred_ms=NOON + 4, origin=("stream-1", 4))], device=device, stream="stream-2"))
        for turn in range(number % 5):
            tell(store, report(NOON + turn, device=device, failed=True, key=f"k-{turn}"))


def answers(store: Store) -> list[object]:
    """All there is to ask."""
    return [
        [(store.completeness(device), store.device(device), store.history(device).rows) for device in DEVICES],
        [store.rejected(device).rows for device in DEVICES],
        list(store.iterate_events(EventFilter())),
        list(store.iterate_events(EventFilter(learner_id="s-17"))),
        store.devices(limit=1000),
        store.failures(min_failures=1),
        store.failures(min_failures=1, mode="total", since_ms=NOON),
        store.fleet(),
    ]


def home(url: str, device: str) -> int:
    """The part that a device belongs to."""
    ((table,),) = run(url, f"SELECT tableoid::regclass::text FROM devices WHERE device_id = '{device}'")
    return int(table.rpartition("_")[2])


@pytest.fixture(scope="module")
def divided(servers: TwoServers) -> Iterator[Divided]:
    here, there = servers.create("divided")
    with closing(open_looped(here)) as store:
        fill(store)
        before = answers(store)
        for part in range(0, 8, 2):
            moved = servers.move(here, part)
            assert len(moved) == 10
        assert answers(store) == before
        parts = {device: home(here, device) for device in DEVICES}
        yield store, there, [one for one in DEVICES if parts[one] % 2], [one for one in DEVICES if not parts[one] % 2]


def test_the_parts_are_where_they_were_moved_and_the_old_tables_are_kept(divided: Divided) -> None:
    store, there, _, elsewhere = divided
    here = store.url.conninfo
    for url, table, wanted in ((there, "devices", elsewhere), (here, "devices_0_moved", None)):
        found = {device for (device,) in run(url, f"SELECT device_id FROM {table}")}
        assert found == set(wanted) if wanted is not None else found < set(elsewhere)
    ((events,),) = run(there, "SELECT count(*) FROM events WHERE stream = 'stream-1'")
    assert events == 5 * len(elsewhere)


def test_a_part_is_not_moved_over_rows_that_are_there(divided: Divided) -> None:
    here = divided[0].url.conninfo
    before = answers(divided[0])
    run(divided[1], "INSERT INTO devices (device_id) SELECT 'x-' || n FROM generate_series(1, 50) AS n")
    try:
        with pytest.raises(errors.RaiseException, match=r"devices_1 on server north has \d+ rows already"):
            run(here, "SELECT * FROM move_part(1, 'north')")
    finally:
        run(divided[1], "DELETE FROM devices WHERE device_id LIKE 'x-%'")
    assert answers(divided[0]) == before


def test_one_group_stores_on_both_and_knows_what_is_there(divided: Divided) -> None:
    store, there, at_home, elsewhere = divided
    pair = (at_home[0], elsewhere[0])
    sent = [
        batch([4, 5, event(6), 8, event(9, note="other"), 10], device=device, received_ms=NOON + HOUR)
        for device in pair
    ]
    told = [report(NOON + 50, device=device, failed=True, key="again") for device in pair]
    outcomes = store.write([*sent, *told, *told])
    for receipt in outcomes[:2]:
        assert counts(receipt) == (3, 2, [(9, "conflict")], 10)  # type: ignore[arg-type]
    assert [one.id for one in outcomes[2:4]] == [one.id for one in outcomes[4:]]  # type: ignore[union-attr]
    for device in pair:
        assert stored_seqs(store, device=device) == [1, 2, 3, 5, 6, 8, 9, 10]
        assert store.history(device, limit=1).rows[0].at_ms == NOON + 50
    ((count,),) = run(there, f"SELECT count(*) FROM events WHERE device_id = '{elsewhere[0]}' AND seq = 10")
    assert count == 1


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("mixed", [False, True], ids=["its own", "mixed"])
def test_a_commit_whose_answer_is_lost_between_the_servers_stores_once(
    divided: Divided, servers: TwoServers, fault: Fault, mixed: bool
) -> None:
    store, _, at_home, elsewhere = divided
    devices = (elsewhere[1], at_home[1]) if mixed else (elsewhere[1],)
    stream = f"lost {fault}, {mixed}"
    received = now_ms()  # the server's clock has a say in where events of a given time are looked for
    reports_before = {device: len(store.history(device).rows) for device in devices}
    servers.way.faults.append(fault)
    outcomes = store.write(
        [batch([1, 2, 3], device=device, stream=stream, received_ms=received) for device in devices]
        + [report(NOON + 60, device=device, failed=True, key=stream) for device in devices]
    )
    assert servers.way.faults == []
    assert [one.watermark for one in outcomes if isinstance(one, Receipt)] == [3] * len(devices)
    for device in devices:
        assert stored_seqs(store, device=device, stream=stream) == [1, 2, 3]
        assert len(store.history(device).rows) == reports_before[device] + 1
    everything = [row.id for row in store.iterate_events(EventFilter())]
    assert len(everything) == len(set(everything))
    since = store.iterate_events(EventFilter(since_ms=received))
    assert sorted((row.device_id, row.seq) for row in since if row.stream == stream) == sorted(
        (device, seq) for device in devices for seq in (1, 2, 3)
    )


def test_ids_that_the_other_server_committed_alone_are_given_to_nobody_else(divided: Divided) -> None:
    """As after a crash of this server, which forgets what was not committed here: its counter, its sequence."""
    store, _, at_home, elsewhere = divided
    here = store.url.conninfo
    ((last,),) = run(here, "SELECT last FROM arrival_counter")
    send(store, batch([1, 2, 3], device=elsewhere[2], stream="crash"))
    run(here, f"UPDATE arrival_counter SET last = setval('event_ids', {last}), server_started = NULL")
    hidden = [row.id for row in store.iterate_events(EventFilter())]
    assert max(hidden) == last  # nobody reads on over what may still be rolled back
    assert end_of_page(here, last) is None
    send(store, batch([1], device=at_home[2], stream="crash"))
    assert end_of_page(here, last) == last + 4
    seen = [(row.id, row.device_id) for row in store.iterate_events(EventFilter(), after=last)]
    assert seen == [(last + 1 + n, elsewhere[2]) for n in range(3)] + [(last + 4, at_home[2])]


def test_a_device_that_sends_again_later_is_seen_by_readers(divided: Divided) -> None:
    """As after a receiver that gave up, or was killed, when the other server had committed its part."""
    store, _, _, elsewhere = divided
    here = store.url.conninfo
    ((last,),) = run(here, "SELECT last FROM arrival_counter")
    send(store, batch([1, 2, 3], device=elsewhere[4], stream="given-up"))
    run(here, f"UPDATE arrival_counter SET last = {last}")
    assert stored_seqs(store, device=elsewhere[4], stream="given-up") == []
    assert counts(send(store, batch([1, 2, 3], device=elsewhere[4], stream="given-up"))) == (0, 3, [], 3)
    assert stored_seqs(store, device=elsewhere[4], stream="given-up") == [1, 2, 3]


def test_while_the_other_is_away_groups_with_its_devices_wait_and_others_go_on(
    divided: Divided, servers: TwoServers
) -> None:
    store, _, at_home, elsewhere = divided
    with opened(store.url.conninfo, patience_s=0.5) as hasty:
        servers.far.stop("immediate")
        try:
            with pytest.raises(StoreUnusable, match="cannot be written"):
                send(hasty, batch([1], device=elsewhere[3], stream="away"))
            for seq in (1, 2, 3):
                assert send(hasty, batch([seq], device=at_home[3], stream="away")).watermark == seq
            tell(hasty, report(NOON + 70, device=at_home[3]))
            assert stored_seqs(hasty, device=at_home[3], stream="away") == [1, 2, 3]
            with pytest.raises(StoreUnusable, match="cannot be read"):
                hasty.device(elsewhere[3])
        finally:
            servers.far.start()
        assert send(hasty, batch([1, 2], device=elsewhere[3], stream="away")).watermark == 2
        assert stored_seqs(hasty, device=elsewhere[3], stream="away") == [1, 2]
