"""The bench runs, and says what it measured. Whether a figure is reached is not for a loaded machine to say."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_each_figure_stands_beside_its_yardstick(tmp_path: Path) -> None:
    result = bench("--quick", "--only", "wire", "--only", "status", "--folder", str(tmp_path))

    assert result.returncode in (0, 1), result.stderr
    rows = [line for line in result.stdout.splitlines() if line.endswith((" PASS", " MISSED"))]
    assert [row.split(",")[0].split(" |")[0] for row in rows] == ["bytes an event", "pisync status"]
    assert result.stdout.startswith("machine: ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_figure_is_named() -> None:
    result = bench("--only", "warp")

    assert result.returncode == 2
    assert "warp" in result.stderr
    assert "sync-event, batches" in result.stderr.replace("'", "")
