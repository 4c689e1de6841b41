"""A fleet of 2,000 devices in 60 schools: two schools are silent, one fails, the rest has scattered trouble.

await fill(store)                       # an open, empty store of either engine: seconds
live.run(fill(live.store, now_ms=NOW_MS))
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Final

from pisync_receiver.domain.fleet import StateCounts
from pisync_receiver.domain.submissions import CodeCreate, DeviceChange, Enroll, EventBatch, Submission
from pisync_receiver.errors import DeviceIdTaken
from pisync_receiver.store import Store
from tests.support.submissions import DAY, HOUR, MINUTE, NOON, batch, event, sync_event

SILENT_SCHOOLS: Final = {"Nakuru Secondary": 34, "Garissa Primary": 33}
"""Silent for nine days, each device of them."""
FAILING_SCHOOL: Final = {"Turkana Primary": 33}
"""Failing for two days because of dns."""
TOWNS: Final = (
    "Bondo", "Busia", "Eldoret", "Embu", "Isiolo", "Kakamega", "Kericho", "Kisii", "Kisumu", "Kitale", "Kitui", "Lamu",
    "Machakos", "Malindi", "Meru", "Mombasa", "Nanyuki", "Nyeri", "Voi",
)  # fmt: skip
SCHOOLS: Final = (
    *(f"{town} {kind}" for town in TOWNS for kind in ("Primary", "Secondary", "Girls")),
    *SILENT_SCHOOLS,
    *FAILING_SCHOOL,
)
DEVICES: Final = 2_000
STATES: Final = StateCounts(well=1_746, failing=119, silent=107, new=25, retired=3)
"""What `/api/overview` must say at the moment of `fill`, if devices count as silent after seven days."""
CLONED: Final = 5
INCOMPLETE: Final = 13
"""Eight lack something, cloned devices have conflicts."""
MISSING: Final = 13 + 7 * 4
GAP: Final = "pibook-0175"
"""Lacks 13 events: 108 to 120."""
FAILING: Final = "pibook-0042"
"""Fails alone in its school, because of timeouts."""

_CAUSES: Final = ("timeout", "connect", "http_5xx", "tls", "portal")
_TYPES: Final = ("video.watched", "note.taken", "assignment.completed", "video.watched")
_GROUP: Final = 1_000


async def fill(store: Store, *, now_ms: int = NOON, days: int = 3) -> None:
    """Let the whole fleet happen: every device that was in contact delivered on each of its last `days` days."""
    for step in (_codes(now_ms), _enrollments(now_ms), _deliveries(now_ms, days)):
        while group := list(islice(step, _GROUP)):
            for submission, outcome in zip(group, await store.write(group), strict=True):
                if isinstance(outcome, DeviceIdTaken) and isinstance(submission, Enroll) and submission.device_id:
                    move = DeviceChange(device_id=submission.device_id, site=submission.code_hash, at_ms=now_ms)
                    await store.write([move])  # a device of the test's own
                elif isinstance(outcome, Exception):
                    raise outcome


def _codes(now_ms: int) -> Iterator[Submission]:
    for school in SCHOOLS:
        yield CodeCreate(
            code_hash=school, at_ms=now_ms - 60 * DAY, expires_ms=now_ms + DAY, uses=100, site=school, label=school
        )


def _enrollments(now_ms: int) -> Iterator[Submission]:
    for number in range(1, DEVICES + 1):
        name = device(number)
        yield Enroll(
            code_hash=school_of(number),
            device_id=name,
            fallback_device_id=name,
            token_hash=f"t{number}",
            at_ms=now_ms - 60 * DAY,
        )


def _deliveries(now_ms: int, days: int) -> Iterator[Submission]:
    roles = _roles()
    for number in range(1, DEVICES + 1):
        name, school = device(number), school_of(number)
        role = roles.get(number, "well")
        chance = random.Random(number)
        if role != "new":
            last_ms = now_ms - chance.randrange(5, 300) * MINUTE
            if role == "silent":
                school_is_silent = school in SILENT_SCHOOLS
                last_ms -= 9 * DAY if school_is_silent else chance.randrange(8, 25) * DAY
            yield from _days(name, role, last_ms, days, chance)
            if role == "failing":
                cause = "dns" if school in FAILING_SCHOOL else "timeout" if name == FAILING else chance.choice(_CAUSES)
                yield from _failures(name, last_ms, cause)
        if role == "retired":
            yield DeviceChange(device_id=name, at_ms=now_ms - DAY, retire=True)


def _days(name: str, role: str, last_ms: int, days: int, chance: random.Random) -> Iterator[Submission]:
    """Good days up to the last contact; a failing device's are those before it began to fail."""
    at_ms = last_ms - 2 * DAY if role == "failing" else last_ms
    seq = 1
    for day in reversed(range(days)):
        received_ms = at_ms - day * DAY
        count = 107 if role == "gap 13" and day == days - 1 else 4
        yield _batch(name, seq, count, received_ms)
        seq += count
        if day == days - 1 and role.startswith("gap "):
            seq += int(role.removeprefix("gap "))
        speed = round(chance.uniform(0.05, 8), 2)
        yield sync_event(
            received_ms, device=name, received_ms=received_ms, total_files_synced=count, internet_speed=speed
        )
    if role == "cloned":
        yield batch([event(1, note="of the copy")], device=name, received_ms=at_ms)


def _batch(name: str, seq: int, count: int, received_ms: int) -> EventBatch:
    events = [
        event(
            seq + place,
            type=_TYPES[(seq + place) % 4],
            object_id=f"math/g5/ch{(seq + place) % 9:02}",
            learner_id=f"s-{place % 4 + 1}",
            occurred_ms=received_ms - HOUR,
            clock_synced=True,
        )
        for place in range(count)
    ]
    return batch(events, device=name, received_ms=received_ms)


def _failures(name: str, last_ms: int, cause: str) -> Iterator[Submission]:
    for turn in reversed(range(8)):
        at_ms = last_ms - turn * 6 * HOUR
        yield sync_event(
            at_ms,
            failed=True,
            device=name,
            received_ms=at_ms,
            errors={cause: 2},
            total_files_synced=0,
            internet_speed=0,
        )


def device(number: int) -> str:
    """Return the id of the device with this number, counted from 1."""
    return f"pibook-{number:04}"


def school_of(number: int) -> str:
    """Return the school of the device with this number: the last of them are those in trouble."""
    place = number - (DEVICES - 100) - 1
    for school, devices in (SILENT_SCHOOLS | FAILING_SCHOOL).items():
        if 0 <= place < devices:
            return school
        place -= devices
    return SCHOOLS[(number - 1) % (len(SCHOOLS) - 3)]


def _roles() -> dict[int, str]:
    roles = {
        number: "failing" if school_of(number) in FAILING_SCHOOL else "silent"
        for number in range(DEVICES - 99, DEVICES + 1)
    }
    special = {int(FAILING[-4:]): "failing", int(GAP[-4:]): "gap 13"}
    others = random.Random(7).sample([number for number in range(1, DEVICES - 99) if number not in special], 165)
    wanted = ("failing",) * 85 + ("silent",) * 40 + ("new",) * 25 + ("retired",) * 3 + ("cloned",) * 5 + ("gap 4",) * 7
    return roles | special | dict(zip(others, wanted, strict=True))
