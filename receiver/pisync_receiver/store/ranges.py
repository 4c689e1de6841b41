"""Inclusive ranges of whole numbers."""

from collections.abc import Sequence

Range = tuple[int, int]


def runs(numbers: Sequence[int]) -> list[Range]:
    """Ascending, distinct numbers as ranges that do not touch."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        return [(numbers[0], numbers[-1])]
    found: list[Range] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def without(gap: Range, run: Range) -> list[Range]:
    """What is left of `gap` once `run`, which lies in it, is filled."""
    left = (gap[0], run[0] - 1), (run[1] + 1, gap[1])
    return [(first, last) for first, last in left if first <= last]
