"""The history of sync runs: what is kept, that it is bounded, and that a damaged file hinders nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.commands.cli import main
from pisync_agent.service import history
from pisync_agent.sync.progress import SyncResult

AT = 1_764_000_000_000
FAILURE = {"code": "unreachable", "kind": "dns", "detail": "the name cannot be found"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
FIELDS = ("at_ms", "delivered", "duplicates", "rejected", "waiting", "seconds", "bytes_sent", "speed_mbit", "errors",
          "offline", "failure")  # fmt: skip


def run(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"at_ms": AT + number} | SyncResult(delivered=number, duplicates=0, rejected=0, waiting=0).fields() | fields


def test_runs_are_kept_newest_first(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        history.append(tmp_path, run(number, seconds=1.25, bytes_sent=4096, speed_mbit=0.5))

    found = history.runs(tmp_path)

    assert [each["delivered"] for each in found] == [3, 2, 1]
    assert found[0] == run(3, seconds=1.25, bytes_sent=4096, speed_mbit=0.5)
    assert len(history.runs(tmp_path, 2)) == 2
    assert (tmp_path / history.FILES[0]).stat().st_mode & 0o777 == 0o600


def test_a_run_that_found_nothing_to_do_is_not_kept(tmp_path: Path) -> None:
    history.append(tmp_path, run(0))
    history.append(tmp_path, run(0, failure=FAILURE))

    assert [each["failure"] for each in history.runs(tmp_path)] == [FAILURE]


def test_the_files_are_bounded_and_hold_hundreds_of_runs(tmp_path: Path) -> None:
    for number in range(1, 3000):
        history.append(tmp_path, run(number))

    sizes = [(tmp_path / name).stat().st_size for name in history.FILES]
    found = history.runs(tmp_path, 10**6)

    assert max(sizes) < history.FILE_BYTES + 1024
    assert [each["delivered"] for each in found] == list(range(2999, 2999 - len(found), -1))
    assert len(history.runs(tmp_path)) >= 250


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    history.append(tmp_path, run(0, failure=FAILURE | {"detail": "x" * 10**6}))

    assert history.runs(tmp_path)[0]["failure"]["detail"] == "x" * history.DETAIL_CHARS


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    history.append(tmp_path, run(1))
    with (tmp_path / history.FILES[0]).open("ab") as file:
        file.write(b'{"at_ms": 1\n\xff\xfe\0\n[]\n' + b"[" * 5000 + b"\n")
    history.append(tmp_path, run(2))

    assert [each["delivered"] for each in history.runs(tmp_path)] == [2, 1]


def test_a_disk_that_refuses_the_line_hinders_no_run(tmp_path: Path) -> None:
    (tmp_path / history.FILES[0]).symlink_to("/dev/full")
    history.append(tmp_path, run(1))
    history.append(tmp_path / "gone", run(1))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)) | JSON)
def test_any_stored_value_is_read_in_its_type(stored: object) -> None:
    found = history.parsed(json.dumps(stored))

    if found is not None:
        json.dumps(found, allow_nan=False)
        assert all(type(found[name]) is int for name in ("at_ms", "delivered", "waiting", "bytes_sent"))
        assert type(found["seconds"]) is float
        assert found["failure"] is None or type(found["failure"]["code"]) is str


def test_the_command_shows_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history.append(tmp_path, run(1_200, seconds=12.3, bytes_sent=52_000, speed_mbit=0.0612, duplicates=2, waiting=7))
    history.append(tmp_path, run(0, failure=FAILURE | {"detail": "https://" + "long." * 40}))

    assert main(["history", "--home", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert main(["history", "--json", "--limit", "1", "--home", str(tmp_path)]) == 0

    assert max(map(len, shown.splitlines())) <= 80
    failed, _, delivered = " ".join(shown.split()).partition("nothing pending")
    assert "failed (dns): https://long.long" in failed
    assert (
        "delivered 1,202 events (2 already known) in 12 s, 50.8 KiB sent, 0.061 Mbit/s; 7 events pending" in delivered
    )
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_an_empty_history_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--home", str(tmp_path)]) == 0

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no sync run" in shown.err
    assert list(tmp_path.iterdir()) == []
