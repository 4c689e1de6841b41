"""What an answer depends on, and what a commit changed of it."""

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pisync_receiver.store import Enrolled, StoredSyncEvent, TokenRow


class Mark(enum.Enum):
    """A part of the database whose changes are told apart."""

    TOKENS = "tokens"
    """Who may call."""
    FAILING = "failing"
    """Devices with a streak of failures."""
    ANYTHING = "anything"


EVERYTHING: Final = frozenset(Mark)


def on_anything(query: Mapping[str, Any]) -> Mark:
    """For a row of the table: any commit may change its answer."""
    return Mark.ANYTHING


def on_nothing(query: Mapping[str, Any]) -> None:
    """Only another program answers it otherwise."""


def marks_of(outcomes: Iterable[object]) -> frozenset[Mark]:
    """What the commit of a group changed, by its outcomes. One that failed may be committed, for all one knows."""
    changed = {Mark.ANYTHING}
    for outcome in outcomes:
        match outcome:
            case StoredSyncEvent():
                if outcome.streak_before or outcome.consecutive_failures:
                    changed.add(Mark.FAILING)
            case TokenRow():
                changed.add(Mark.TOKENS)
            case Enrolled() | Exception():
                return EVERYTHING
    return frozenset(changed)
