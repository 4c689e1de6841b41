"""What a figure is and how it is printed: results on stdout, progress on stderr."""

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTHS = (62, 26, 26, 8, 9)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a figure may write, and whether a rough one is enough."""

    folder: Path
    quick: bool

    def pick(self, thorough: int, quick: int) -> int:
        """Choose a size or a number of rounds."""
        return quick if self.quick else thorough

    def place(self, name: str) -> Path:
        """Make a fresh folder."""
        path = self.folder / name
        path.mkdir()
        return path


@dataclass(frozen=True, kw_only=True)
class Result:
    """A figure, its yardstick, their ratio, and the target."""

    what: str
    value: str
    yardstick: str
    ratio: float
    target: float
    at_least: bool
    """Whether a larger ratio is better."""

    @property
    def passed(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def line(self) -> str:
        sign = "≥" if self.at_least else "≤"
        cells = (self.what, self.value, self.yardstick, f"{self.ratio:.2f}", f"{sign} {self.target:g}")
        verdict = "PASS" if self.passed else "MISSED"
        return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + " " + verdict


def at_least(what: str, value: str, yardstick: str, ratio: float, target: float) -> Result:
    return Result(what=what, value=value, yardstick=yardstick, ratio=ratio, target=target, at_least=True)


def at_most(what: str, value: str, yardstick: str, ratio: float, target: float) -> Result:
    return Result(what=what, value=value, yardstick=yardstick, ratio=ratio, target=target, at_least=False)


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def heading() -> str:
    cells = ("figure | yardstick", "measured", "yardstick", "ratio", "target")
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + " verdict"


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine(folder: Path) -> list[str]:
    """Describe what the figures are measured on, and what its disk can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    load = "wrk" if shutil.which("wrk") else "the bench's own"
    return [
        f"machine: {os.cpu_count()} cores, {models[0] if models else platform.machine()}, {platform.system()} "
        f"{platform.release()}",
        f"python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, load generator: {load} "
        "(on the same cores)",
        f"disk: {file_system(folder)}, {syncs_a_second(folder):,.0f} fdatasync/s",
    ]


def file_system(folder: Path) -> str:
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def syncs_a_second(folder: Path, *, count: int = 300) -> float:
    """Append to a file and flush each append to the disk."""
    path = folder / "sync-probe"
    with path.open("wb", buffering=0) as file:
        start = time.perf_counter()
        for _ in range(count):
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
        seconds = time.perf_counter() - start
    path.unlink()
    return count / seconds
