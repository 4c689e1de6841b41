"""The writer's lock, held for long, and the process that holds it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pisync_agent.service import lock
from pisync_common.errors import LockHeld


def test_the_holder_of_the_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outbox.lock"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with pytest.raises(LockHeld, match=rf"process {other.pid} \("), lock.writer_lock(path, patience=0):
            pass
        other.communicate("")
    with lock.writer_lock(path, patience=0):
        assert str(os.getpid()) in str(lock.holder_of(path))


def test_a_lock_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "outbox.lock"
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(0.3)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with lock.writer_lock(path, patience=20):
            pass


def test_without_the_kernels_table_the_holder_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "outbox.lock").touch()
    assert lock.holder_of(tmp_path / "outbox.lock", locks=tmp_path / "none") is None
    (tmp_path / "locks").write_text("")
    assert lock.holder_of(tmp_path / "outbox.lock", locks=tmp_path / "locks") is None
