"""The erasures file: lines that survive, lines that a power cut tore, and files that cannot be used."""

import errno
import os
import threading
from pathlib import Path

import pytest

from pisync_receiver.domain.erasure import Erased
from pisync_receiver.erasures_file import ErasuresFile
from pisync_receiver.errors import ErasuresFileUnusable
from tests.support.submissions import NOON

KEY = b"k" * 32


def row(number: int) -> Erased:
    return Erased(learner=f"{number:064x}", id=f"{number:064x}", receipt="ab", asked_ms=NOON)


def learners(file: ErasuresFile) -> list[int]:
    return [int(line.learner, 16) for line in file.read()]


@pytest.fixture
def file(tmp_path: Path) -> ErasuresFile:
    return ErasuresFile(tmp_path / "folder/erasures")


def test_lines_come_back_and_are_the_owners_alone(file: ErasuresFile) -> None:
    assert learners(file) == []
    file.append([KEY], [row(1), row(2)])
    file.append([KEY], [row(3)])
    assert learners(file) == [1, 2, 3]
    assert file.read()[0].keys == [KEY.hex()]
    assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", [0, 1])
def test_torn_line_does_not_spoil_the_others(file: ErasuresFile, kept: int) -> None:
    file.append([KEY], [row(number) for number in range(kept + 1)])
    file.path.write_bytes(file.path.read_bytes()[:-9])
    assert learners(file) == list(range(kept))
    file.append([KEY], [row(7)])
    assert learners(file) == [*range(kept), 7]


def test_zeros_of_a_power_cut_are_no_lines(file: ErasuresFile) -> None:
    file.append([KEY], [row(1)])
    with file.path.open("ab") as end:
        end.write(bytes(100))
    assert learners(file) == [1]
    file.append([KEY], [row(2)])
    assert learners(file) == [1, 2]


def test_another_file_is_refused_and_left_as_it_is(file: ErasuresFile) -> None:
    file.path.parent.mkdir()
    file.path.write_text("[settings]\n")
    with pytest.raises(ErasuresFileUnusable, match="is not an erasures file"):
        file.read()
    assert file.path.read_text() == "[settings]\n"


def test_full_disk_takes_no_line_of_another_receiver(file: ErasuresFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken back to its length before; a line that came meanwhile would go too."""
    file.append([KEY], [row(1)])
    others = threading.Thread(target=lambda: ErasuresFile(file.path).append([KEY], [row(2)]))
    write = os.write

    def fail(descriptor: int, text: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        others.start()
        others.join(0.2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(ErasuresFileUnusable):
        file.append([KEY], [row(3)])
    others.join()
    assert learners(file) == [1, 2]


def test_full_disk_leaves_no_part_of_a_line(file: ErasuresFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append([KEY], [row(1)])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:20]))
    with pytest.raises(ErasuresFileUnusable, match="No space left on device; nothing was erased"):
        file.append([KEY], [row(2)])
    monkeypatch.undo()
    assert learners(file) == [1]
    assert file.path.read_bytes().endswith(b"\n")
