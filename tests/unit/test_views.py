"""`status` and `queue` say that nothing was recorded only where that is known."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pisync_agent.errors import StoreUnusable
from pisync_agent.service import views
from tests.support.outboxes import events, opened


def look(home: Path) -> None:
    with views.look(home) as view:
        assert view.state()["outbox"]["last_seq"] == 0


def failure(home: Path) -> str:
    with pytest.raises(StoreUnusable) as caught:
        look(home)
    return str(caught.value)


def test_a_new_folder_has_nothing(tmp_path: Path) -> None:
    look(tmp_path)
    look(tmp_path / "home")


@pytest.mark.parametrize("link", ["outbox.db", "."])
def test_a_link_to_a_missing_disk_is_named(tmp_path: Path, link: str) -> None:
    home = tmp_path / "home"
    if link == ".":
        home.symlink_to(tmp_path / "missing")
    else:
        home.mkdir()
        (home / link).symlink_to(tmp_path / "missing")
    assert "a link that leads nowhere" in failure(home)


def test_a_folder_that_is_a_link_to_a_missing_disk_is_named_to_a_writer(tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to(tmp_path / "missing")
    with pytest.raises(StoreUnusable, match="a link that leads nowhere"):
        opened(tmp_path / "home")


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_log_without_its_database_is_named(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    outbox = opened(tmp_path / "used")
    outbox.append(events(3))
    shutil.copytree(tmp_path / "used", tmp_path / "home")
    outbox.close()
    lose(tmp_path / "home" / "outbox.db")
    assert "the newest events are in outbox.db-wal" in failure(tmp_path / "home")
