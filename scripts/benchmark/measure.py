"""How long, how much of it, and what is typical."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every figure is told: where it may write, and how much patience there is."""

    folder: Path
    quick: bool

    def pick(self, thorough: int, quick: int) -> int:
        """A size or a number of rounds."""
        return quick if self.quick else thorough

    def place(self, name: str) -> Path:
        """A fresh folder."""
        path = self.folder / name
        path.mkdir()
        return path


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
