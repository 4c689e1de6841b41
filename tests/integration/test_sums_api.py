"""Causes, speeds, runs and activity by the API: which days they cover, and what they refuse."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_receiver.app import AppSettings, Receiver
from pisync_receiver.store.opening import backup, open_store
from tests.support.submissions import DAY, HOUR, NOON, batch, event, sync_event


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A sync event and an event on each of 40 days, the last at NOON."""

    async def fill() -> None:
        store = await open_store(path, create=True)
        for day in range(40):
            at_ms = NOON - day * DAY
            one = event(40 - day, occurred_ms=at_ms, clock_synced=True)
            await store.write([sync_event(at_ms, failed=True, errors={"dns": 1}), batch([one])])
        await store.aclose()

    path = tmp_path / "receiver.db"
    asyncio.run(fill())
    return path


def ask(database: Path, *paths: str) -> list[httpx.Response]:
    async def answers() -> list[httpx.Response]:
        store = await open_store(database)
        receiver = Receiver.create(store, AppSettings(auth=False), now_ms=lambda: NOON + HOUR)
        transport = httpx.ASGITransport(receiver.app)
        async with receiver.running(), httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
            found = [await client.get(path) for path in paths]
        await store.aclose()
        return found

    return asyncio.run(answers())


def test_thirty_days_are_shown_unless_others_are_asked_for(database: Path) -> None:
    paths = ("/api/causes", "/api/runs", "/api/speeds", "/api/activity", "/api/activity?by=object")
    for answer in ask(database, *paths):
        days = [row["day"] for row in answer.json()]
        assert (len(days), days[0], days[-1]) == (30, "2026-11-23", "2026-10-25"), answer.url
    since, until, both = ask(
        database, "/api/runs?since=3d", "/api/runs?until=2026-11-22T00:00:00Z", "/api/runs?since=400d&until=20d"
    )
    assert [row["day"] for row in since.json()] == ["2026-11-23", "2026-11-22", "2026-11-21", "2026-11-20"]
    assert since.json()[0] == {"day": "2026-11-23", "site": None, "runs": 1, "failed": 1, "files": 3}
    assert (len(until.json()), until.json()[0]["day"]) == (30, "2026-11-21")
    assert (len(both.json()), both.json()[-1]["day"]) == (20, "2026-10-15")


def test_no_more_days_are_read_than_the_most(database: Path) -> None:
    recent, long_ago = ask(
        database, "/api/runs?since=2000-01-01T00:00:00Z&limit=1000", "/api/runs?until=0001-01-01T00:00:00Z"
    )
    assert len(recent.json()) == 40
    assert long_ago.json() == []
    assert ask(database, "/api/runs?since=2000-01-01T00:00:00Z&until=2028-01-01T00:00:00Z")[0].json() == []


def test_grouped_activity_is_added_up(database: Path) -> None:
    total, by_day = ask(database, "/api/activity?group=type,object", "/api/activity?group=day&since=1d")
    nothing: dict[str, Any] = {"day": None, "site": None, "type": None, "object_id": None}
    of_type = {"type": "video.watched", "object_id": "math/g5/ch02/v03"}
    assert total.json() == [nothing | of_type | {"events": 30}]
    assert by_day.json() == [nothing | {"day": day, "events": 1} for day in ("2026-11-23", "2026-11-22")]


@pytest.mark.parametrize("query", ["since=then", "group=week", "group=", "group=day,", "by=learner", "sight=a"])
def test_question_that_cannot_be_answered_is_refused(database: Path, query: str) -> None:
    (answer,) = ask(database, f"/api/activity?{query}")
    assert answer.status_code == 400


def test_backup_has_the_sums(database: Path, tmp_path: Path) -> None:
    backup(database, tmp_path / "backup.db")
    paths = ("/api/causes", "/api/runs", "/api/speeds", "/api/activity?by=object", "/api/overview")
    here, there = (ask(file, *paths) for file in (database, tmp_path / "backup.db"))
    assert [answer.json() for answer in there] == [answer.json() for answer in here]
