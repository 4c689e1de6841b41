"""School days, made up but plausible: who does what, when, and what a learning app says about it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pisync_common.models import Stamp

MORNING_MS = 1_795_420_800_000
"""2026-11-23T08:00:00Z."""
WORDS = (
    "a", "angle", "because", "circle", "count", "example", "fraction", "half", "is", "larger", "means", "of",
    "plant", "roots", "same", "shape", "than", "the", "then", "water", "we", "when", "whole", "why",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One event as an app would record it."""

    type: str
    learner_id: str
    object_id: str
    data: dict[str, object]
    stamp: Stamp


def lessons(count: int, *, seed: int) -> Iterator[Lesson]:
    """`count` events of a class of 24 in the order they happened, a few seconds apart, over one boot a day."""
    chance = random.Random(seed)
    boot_id, at_ms, booted_ms = _boot(chance), MORNING_MS, MORNING_MS - 40_000
    for number in range(count):
        at_ms += chance.randint(400, 9_000)
        if number % 4_000 == 3_999:  # the next school day
            at_ms += 18 * 3_600_000
            boot_id, booted_ms = _boot(chance), at_ms - 40_000
        stamp = Stamp(at_ms=at_ms, boot_id=boot_id, boottime_ms=at_ms - booted_ms, clock_synced=False)
        yield _lesson(chance, stamp)


def _boot(chance: random.Random) -> str:
    digits = f"{chance.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _lesson(chance: random.Random, stamp: Stamp) -> Lesson:
    subject, chapter = chance.choice(("math", "science", "english")), chance.randint(1, 9)
    kind, data = chance.choices((_video, _quiz, _note, _assignment), weights=(5, 8, 1, 2))[0](chance)
    return Lesson(
        type=kind,
        learner_id=f"s-{chance.randint(1, 24)}",
        object_id=f"{subject}/g5/ch{chapter:02d}/{kind[0]}{chance.randint(1, 12):02d}",
        data=data,
        stamp=stamp,
    )


def _video(chance: random.Random) -> tuple[str, dict[str, object]]:
    seconds = chance.randint(20, 600)
    return "video.watched", {"seconds_watched": seconds, "progress": round(min(1.0, seconds / 420), 2)}


def _quiz(chance: random.Random) -> tuple[str, dict[str, object]]:
    answer = {"question": chance.randint(1, 15), "answer": chance.choice("abcd"), "correct": chance.random() < 0.7}
    return "quiz.answered", answer


def _note(chance: random.Random) -> tuple[str, dict[str, object]]:
    return "note.taken", {"text": " ".join(chance.choices(WORDS, k=chance.randint(4, 14)))}


def _assignment(chance: random.Random) -> tuple[str, dict[str, object]]:
    return "assignment.completed", {"score": chance.randint(3, 10), "max_score": 10, "attempts": chance.randint(1, 3)}
