"""The completion of both programs, as bash computes it; and the manual page."""

import shutil
import subprocess
from pathlib import Path

import pytest

import build_packages
import completion
import pisync_agent.commands.cli as agent_cli
import pisync_receiver.commands.cli as receiver_cli

PARSERS = {"pisync": agent_cli.build_parser, "pisync-receiver": receiver_cli.build_parser}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def completed(script: str, folder: Path, program: str, *words: str) -> set[str]:
    """Return what bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in (program, *words))
    code = (
        f"{script}\nset -u\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
        f"_{program.replace('-', '_')}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


def test_commands_flags_and_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "two words.toml").touch()
    (tmp_path / "folder").mkdir()
    script = completion.bash("pisync", agent_cli.build_parser())

    def offered(*words: str) -> set[str]:
        return completed(script, tmp_path, "pisync", *words)

    assert offered("") >= {"status", "sync", "queue", "history", "logs", "support", "--version"}
    assert offered("st") == {"status"}
    assert offered("queue", "") >= {"list", "show", "dead", "requeue"}
    assert offered("queue", "list", "--") >= {"--limit", "--after", "--all", "--json", "--home", "--config"}
    assert offered("status", "--json", "--ho") == {"--home"}
    assert offered("status", "--config", "") == {"two words.toml", "folder"}
    assert offered("status", "--home", "") == {"folder"}
    assert offered("queue", "list", "--limit", "") == set()


@pytest.mark.parametrize("program", PARSERS)
def test_every_command_is_completed(tmp_path: Path, program: str) -> None:
    parser = PARSERS[program]()
    script = completion.bash(program, parser)
    everything = list(completion._commands(parser))

    assert len(everything) > 10
    for words, below in everything:
        offered = completed(script, tmp_path, program, *words, "--")
        assert offered >= {each for each in completion._words(below) if each.startswith("--")}, words


def test_the_manual_page_has_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    shown = build_packages.manual(build_packages.AGENT)

    for entry in agent_cli.ENTRIES:
        assert f".SH PISYNC {entry.typed.upper()}\n" in shown
