"""The outbox: the numbered queue on the device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pisync_agent.outbox.events import NewEvent
    from pisync_agent.outbox.models import DeadLetter, EventState, OutboxLimits, OutboxState, Report, Salvaged
    from pisync_agent.outbox.opening import open_outbox
    from pisync_agent.outbox.outbox import Outbox
    from pisync_agent.outbox.reader import OutboxReader, read_state

__all__ = [
    "DeadLetter",
    "EventState",
    "NewEvent",
    "Outbox",
    "OutboxLimits",
    "OutboxReader",
    "OutboxState",
    "Report",
    "Salvaged",
    "open_outbox",
    "read_state",
]

_HOME_OF = {
    "NewEvent": "events",
    "Outbox": "outbox",
    "OutboxReader": "reader",
    "open_outbox": "opening",
    "read_state": "reader",
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `pisync status` needs little of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF.get(name, 'models')}"), name)
