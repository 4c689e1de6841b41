"""Opening a store by its address, and the lock of a SQLite file's one writer."""

import asyncio
from pathlib import Path

import pytest

from pisync_common.errors import LockHeld
from pisync_receiver.errors import ReceiverError
from pisync_receiver.store import opening
from pisync_receiver.store.address import PostgresUrl


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "receiver.db"


def test_second_writer_is_refused_and_named(path: Path) -> None:
    with opening.writing(path, "pisync-receiver serve"):
        refusal = pytest.raises(LockHeld, match=r"in use by pisync-receiver serve \(process \d+\); nothing was changed")
        with refusal, opening.writing(path, "another"):
            pass
        with pytest.raises(LockHeld):
            asyncio.run(opening.migrate(path))
    with opening.writing(path, "another"):
        pass


def test_postgresql_takes_any_number_of_writers() -> None:
    url = PostgresUrl(conninfo="postgresql://user:secret@db.example/pisync")
    with opening.writing(url, "one"), opening.writing(url, "two"):
        assert opening.exists(url)


def test_migrate_makes_a_database_and_names_what_it_applied(path: Path) -> None:
    assert not opening.exists(path)
    assert asyncio.run(opening.migrate(path)) == ["0001_initial", "0002_window"]
    assert asyncio.run(opening.migrate(path)) == []
    assert opening.exists(path)


def test_backup_of_postgresql_points_to_its_own_programs(tmp_path: Path) -> None:
    url = PostgresUrl(conninfo="postgresql://user:secret@db.example/pisync")
    with pytest.raises(ReceiverError, match="pg_dump") as refused:
        opening.backup(url, tmp_path / "copy.db")
    assert "secret" not in str(refused.value)
