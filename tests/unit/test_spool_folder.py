"""What the spool folder holds, as `status` and `doctor` count it."""

import time
from pathlib import Path

import pytest

from pisync_agent.service import spool_folder
from pisync_agent.service.spool_folder import LEFT_S, SpoolCounts, counts


def test_files_are_counted_and_old_files_were_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counts(tmp_path) == SpoolCounts()
    folder = tmp_path / "spool"
    folder.mkdir()
    for name in ("a.ndjson", "b.ndjson", ".c.ndjson", "d.tmp", "a.ndjson.refused"):
        (folder / name).touch()
    (folder / "gone.ndjson").symlink_to("nowhere")

    assert counts(tmp_path) == SpoolCounts(pending=3, left=0, refused=1)
    later = time.time() + LEFT_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert counts(tmp_path) == SpoolCounts(pending=3, left=3, refused=1)


def test_a_folder_of_any_size_takes_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_folder, "ENTRIES", 5)
    (tmp_path / "spool").mkdir()
    for number in range(10):
        (tmp_path / "spool" / f"{number}.ndjson").touch()

    assert counts(tmp_path) == SpoolCounts(pending=5)


def test_a_folder_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    assert counts(tmp_path) is None
