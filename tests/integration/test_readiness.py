"""/readyz is 200 or 503, whatever the store does; /healthz does not ask it."""

import asyncio
import gc
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pisync_receiver import app
from pisync_receiver.errors import Overloaded, StoreUnusable
from pisync_receiver.store import Store
from tests.support.live_receiver import Live, live_receiver
from tests.support.processes import wait_until


class Failing:
    """A store whose readiness is what the test says: an exception, or a wait without an end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.error: BaseException | None = None
        self.open = threading.Event()
        self.open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def ready(self) -> None:
        assert await asyncio.to_thread(self.open.wait, 60)
        if self.error is not None:
            raise self.error
        await self._store.ready()


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Live, Failing]]:
    made: list[Failing] = []

    def wrap(store: Store) -> Failing:
        made.append(Failing(store))
        return made[0]

    with live_receiver(tmp_path, wrap=wrap) as live:
        yield live, made[0]


@pytest.mark.parametrize(
    "error",
    [
        StoreUnusable("disk I/O error"),
        Overloaded("full", retry_after=3),
        sqlite3.DatabaseError("database disk image is malformed"),
        sqlite3.ProgrammingError("cannot operate on a closed database"),
        OSError("too many open files"),
        RuntimeError("cannot schedule new futures after shutdown"),
        TimeoutError(),
        MemoryError(),
        UnicodeDecodeError("utf-8", b"secret", 0, 1, "invalid"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_store_that_fails_is_503_and_ready_again_afterwards(
    failing: tuple[Live, Failing], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    live, store = failing
    client = live.client(None)
    assert client.get("/readyz").status_code == 200
    store.error = error
    for _ in range(2):
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/healthz").status_code == 200
    store.error = None
    assert client.get("/readyz").status_code == 200
    assert "secret" not in caplog.text


def test_a_store_that_does_not_answer_is_503(failing: tuple[Live, Failing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "READY_S", 0.05)
    live, store = failing
    store.open.clear()
    client = live.client(None)
    assert [client.get("/readyz").status_code for _ in range(3)] == [503] * 3
    assert client.get("/healthz").status_code == 200
    store.open.set()
    wait_until(lambda: client.get("/readyz").status_code == 200, "it is ready again")


def test_an_error_that_comes_too_late_is_not_logged_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "READY_S", 0.01)
    lost: list[object] = []

    async def check() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        away = asyncio.Event()

        class Intake:
            async def ready(self) -> None:
                await away.wait()
                raise StoreUnusable("the server is away")

        intake: Any = Intake()
        readiness = app._Readiness(intake)
        with pytest.raises(StoreUnusable, match="no durable write"):
            await readiness.check()
        asked, readiness._asked = readiness._asked, None
        assert asked is not None
        away.set()
        await asyncio.wait((asked,))
        del asked
        gc.collect()

    asyncio.run(check())
    assert lost == []


def test_a_check_that_begins_as_another_ends_leaves_it_its_answer() -> None:
    class Intake:
        async def ready(self) -> None:
            if not later:
                asyncio.get_running_loop().call_soon(lambda: later.append(asyncio.create_task(readiness.check())))

    later: list[asyncio.Task[None]] = []
    intake: Any = Intake()
    readiness = app._Readiness(intake)

    async def check() -> None:
        await readiness.check()
        await later[0]

    asyncio.run(check())


def test_a_closed_store_is_503(failing: tuple[Live, Failing]) -> None:
    live, _ = failing
    live.run(live.store.aclose())
    assert live.client(None).get("/readyz").status_code == 503
    assert live.client(None).get("/healthz").status_code == 200


def test_a_cancelled_check_is_overloaded() -> None:
    class Cancelled:
        async def ready(self) -> None:
            raise asyncio.CancelledError

    intake: Any = Cancelled()
    with pytest.raises(Overloaded):
        asyncio.run(app._Readiness(intake).check())
