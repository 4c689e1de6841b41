"""Sets of numbers that are mostly consecutive."""

from bisect import bisect_right
from collections.abc import Iterable


class Numbers:
    """A set of mostly consecutive numbers, stored as ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges` are ascending and do not touch, as `ranges` returns them."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self._firsts.append(first)
            self._lasts.append(last)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The numbers as inclusive ranges."""
        return list(zip(self._firsts, self._lasts, strict=True))

    @property
    def lowest(self) -> int | None:
        return self._firsts[0] if self._firsts else None

    @property
    def highest(self) -> int | None:
        return self._lasts[-1] if self._lasts else None

    def add(self, number: int) -> None:
        at = bisect_right(self._firsts, number)
        if at and number <= self._lasts[at - 1] + 1:
            at -= 1
            self._lasts[at] = max(number, self._lasts[at])
        else:
            self._firsts.insert(at, number)
            self._lasts.insert(at, number)
        if at + 1 < len(self._firsts) and self._firsts[at + 1] == self._lasts[at] + 1:
            self._lasts[at] = self._lasts.pop(at + 1)
            self._firsts.pop(at + 1)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number)
        return at > 0 and number <= self._lasts[at - 1]

    def count_above(self, number: int) -> int:
        """Return how many are larger than `number`."""
        return sum(last - max(first - 1, number) for first, last in self.ranges if last > number)
