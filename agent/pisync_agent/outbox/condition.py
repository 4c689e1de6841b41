"""What is wrong with the outbox on this card, as facts, for `status` and `doctor`: they find the words.

It looks without changing anything but a probe, a small file that is deleted at once. It works beside a running service
and without one.
"""

from dataclasses import dataclass
from pathlib import Path

from pisync_agent.errors import AgentError
from pisync_agent.outbox import files
from pisync_agent.outbox.faults import Fault, explained, refusal_to_write
from pisync_agent.outbox.models import OutboxState
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.outbox.recovery.salvage import MISSING_LOG, hidden_damage
from pisync_common.single_writer import try_lock
from pisync_common.sqlite import ERRORS


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """`fault` is None if all is well. `reading` says whether the outbox could be read, `writing` whether its folder
    takes a new file: a read-only card can be read, a full disk too."""

    fault: Fault | None
    detail: str
    """What is wrong, what was kept, what to do; empty if all is well."""
    reading: bool
    writing: bool
    state: OutboxState | None
    """None if there is no outbox yet, or it cannot be read."""


def inspect(home: Path) -> Condition:
    """Return the condition of the outbox in `home`. Raises nothing that a failing card can cause."""
    path = files.database(home)
    damage, state, unreadable = _damage(path), None, None
    if damage is None:
        state, unreadable = _read(home)
    refused = refusal_to_write(home) if home.is_dir() else None
    unwritable = None if refused is None else explained(path, OSError(refused, "", str(path)))
    wrong = damage or unreadable or unwritable
    return Condition(
        fault=None if wrong is None else Fault(wrong.fault or Fault.OTHER),
        detail="" if wrong is None else str(wrong),
        reading=damage is None and unreadable is None,
        writing=refused is None,
        state=state,
    )


def _read(home: Path) -> tuple[OutboxState | None, AgentError | None]:
    path = files.database(home)
    try:
        if not path.exists() or not path.stat().st_size:
            return None, None
        with OutboxReader(home) as reader:
            return reader.state(), None
    except AgentError as error:
        return None, error
    except (OSError, *ERRORS) as error:
        return None, explained(path, error, reading=True)


def _damage(path: Path) -> AgentError | None:
    """Return the damage that SQLite would not notice. A running writer has looked for it when it opened the file."""
    try:
        if not files.lock(path.parent).exists():
            found = hidden_damage(path)
        else:
            with try_lock(files.lock(path.parent)) as unused:
                found = hidden_damage(path) if unused else None
    except OSError:  # the other looks say what is wrong
        return None
    if found is None:
        return None
    error = AgentError(
        f"{path} is damaged: {found}. Keep all its files. The service (`pisync run`) sets it aside when it starts, and "
        "transfers what is readable to a new file."
    )
    error.fault = Fault.LOG_MISSING if found.startswith(MISSING_LOG) else Fault.DAMAGED
    return error
