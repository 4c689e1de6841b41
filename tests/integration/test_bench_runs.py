"""The bench runs and prints what it measured. Whether a target is reached is not tested: machines are loaded."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench.py"), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_each_figure_stands_beside_its_yardstick(tmp_path: Path) -> None:
    result = bench("--quick", "--only", "batches", "--folder", str(tmp_path))

    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (0, 1)
    (row,) = (line for line in result.stdout.splitlines() if line.endswith((" PASS", " MISSED")))
    assert row.startswith("SQLite: batches of 500, gzip, 4 connections | bare sqlite3")
    assert result.stdout.startswith("machine: ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_figure_is_named() -> None:
    result = bench("--only", "warp")

    assert result.returncode == 2
    assert "warp" in result.stderr
    assert "post, post-postgres" in result.stderr.replace("'", "")
