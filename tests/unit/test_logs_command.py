"""`pisync logs`: journalctl's command line, and what to do where there is no journal, or not for this user."""

import os
from pathlib import Path

import pytest

from pisync_agent.commands import logs
from pisync_agent.commands.cli import main
from pisync_agent.commands.usage import WrongUsage
from pisync_agent.errors import StoreUnusable


def test_the_service_is_named_and_flags_are_passed_on() -> None:
    assert logs.command(100) == ["journalctl", "--unit=pisync-agent.service", "--lines=100"]
    assert logs.command(5, follow=True, since="1 hour ago")[2:] == ["--lines=5", "--follow", "--since=1 hour ago"]


@pytest.mark.parametrize("arguments", [["--lines", "many"], ["--lines=-1"], ["--since=--rotate"]])
def test_what_journalctl_would_take_for_another_flag_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", *arguments]) == 2
    assert "such as" in capsys.readouterr().err


def journal(folder: Path, *, mode: int = 0o640) -> Path:
    file = folder / "journal" / "0123abcd" / "system.journal"
    file.parent.mkdir(parents=True)
    file.touch(mode)
    return file.parents[1]


def test_it_becomes_journalctl(tmp_path: Path) -> None:
    executed: list[list[str]] = []

    logs.show(
        ["journalctl", "--lines=5"], execute=lambda program, words: executed.append([program, *words]),
        systemd=tmp_path, journals=(journal(tmp_path), tmp_path / "none"),
    )  # fmt: skip

    assert executed == [["journalctl", "journalctl", "--lines=5"]]


def test_without_systemd_it_says_where_the_log_is(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="standard error"):
        logs.show(["journalctl"], systemd=tmp_path / "none")


def test_a_user_who_may_not_read_the_journal_learns_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreUnusable, match=r"sudo pisync logs; or join the group systemd-journal"):
        logs.show(["journalctl"], systemd=tmp_path, journals=(journal(tmp_path),))


def test_a_missing_journalctl_is_named(tmp_path: Path) -> None:
    def missing(program: str, words: list[str]) -> None:
        raise FileNotFoundError

    with pytest.raises(WrongUsage, match="not installed"):
        logs.show(["journalctl"], execute=missing, systemd=tmp_path, journals=())
