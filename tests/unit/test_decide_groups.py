"""A group decides as its submissions would one after the other. Events have a synchronised clock here: an estimate also
looks at the rest of its group."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import DeviceChange
from tests.support.memory_store import MemoryStore
from tests.support.submissions import HOUR, NOON, batch, event, invalid, sync_event

UUID = "5c1e2f60-7a0b-4f8e-9d57-0a1b2c3d4e5f"
TABLES = ("devices", "streams", "events", "event_keys", "carried", "rejected", "gaps", "sync_events")


def rows(store: MemoryStore) -> dict[str, Sequence[object]]:
    return {table: [_plain(row) for row in store.rows(table)] for table in TABLES}


events = st.builds(
    lambda seq, **given: event(seq, clock_synced=True, **given),
    seq=st.integers(1, 12),
    note=st.sampled_from([None, None, None, "other"]),
    origin=st.none() | st.tuples(st.sampled_from(["s1", "s2"]), st.integers(1, 4)),
    event_id=st.sampled_from([None, None, None, None, UUID, "own"]),
)
runs = st.tuples(st.integers(1, 9), st.integers(1, 5)).map(
    lambda run: [event(seq, clock_synced=True) for seq in range(run[0], sum(run))]
)
batches = st.builds(
    lambda sent, bad, **fields: batch([*sent, *map(invalid, bad)], **fields),
    device=st.sampled_from(["a", "b"]),
    stream=st.sampled_from(["s1", "s2"]),
    sent=st.lists(events, max_size=5) | runs,
    bad=st.lists(st.integers(1, 12), max_size=2),
)
sync_events = st.builds(
    sync_event,
    device=st.sampled_from(["a", "b"]),
    claimed_ms=st.integers(0, 8).map(lambda ms: NOON + ms) | st.just(5),
    failed=st.booleans(),
    key=st.sampled_from([None, None, "k1", "k2"]),
)
moves = st.builds(
    lambda device, site, since: DeviceChange(device_id=device, at_ms=NOON, site=site, site_since_ms=NOON + since),
    device=st.sampled_from(["a", "b"]),
    site=st.sampled_from(["Nakuru", "Kisumu"]),
    since=st.integers(-HOUR, HOUR),
)
submissions = st.lists(batches | batches | sync_events | moves, min_size=1, max_size=14)


@settings(max_examples=300, deadline=None)
@given(given=submissions, cuts=st.sets(st.integers(1, 13)))
def test_group_decides_as_its_submissions_would_alone(given: list[Any], cuts: set[int]) -> None:
    # Each arrives at its own time, so that the order of arrival is clear.
    sent = [
        one if isinstance(one, DeviceChange) else replace(one, received_ms=NOON + HOUR + number)
        for number, one in enumerate(given)
    ]
    alone, grouped = MemoryStore(), MemoryStore()
    for store in (alone, grouped):
        store.run(*(sync_event(NOON, device=device) for device in ("a", "b")))
    outcomes = [outcome for one in sent for outcome in alone.run(one)]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    together = [outcome for first, last in pairwise(bounds) for outcome in grouped.run(*sent[first:last])]
    assert [_plain(outcome) for outcome in together] == [_plain(outcome) for outcome in outcomes]
    assert rows(grouped) == rows(alone)


def _plain(thing: object) -> object:
    """Leave out the ids of sync events: groups may skip some."""
    if isinstance(thing, StoredSyncEvent):
        return replace(thing, id=0)
    return (type(thing), str(thing)) if isinstance(thing, Exception) else thing
