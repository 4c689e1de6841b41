"""What `busctl` may answer; `tests/integration/test_metered_link.py` asks a real bus."""

import stat
from pathlib import Path

import pytest

from pisync_agent.network.metered import BUSCTL, is_metered


@pytest.mark.parametrize(
    ("answer", "metered"),
    [
        ("echo 'u 1'", True),
        ("echo 'u 3'", True),
        ("echo 'u 2'", False),
        ("echo 'u 4'", False),
        ("echo 'u 0'", False),
        ("echo 's \"u 1\"'", False),
        ("echo 'u 1'; exit 1", False),
        ("head -c 100000 /dev/zero", False),
        ("exec sleep 60", False),
    ],
)
def test_networkmanagers_answer_says_whether_the_link_is_metered(tmp_path: Path, answer: str, metered: bool) -> None:
    program = tmp_path / "busctl"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    assert is_metered([str(program), *BUSCTL[1:]], patience=0.5 if "sleep" in answer else 30) is metered


def test_without_the_command_no_link_is_metered(tmp_path: Path) -> None:
    assert is_metered([str(tmp_path / "busctl")]) is False
