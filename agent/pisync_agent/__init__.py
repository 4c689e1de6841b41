"""The agent: what learners do on this device is recorded, kept, and delivered when there is a link.

from pisync_agent import Recorder

with Recorder() as recorder:
    recorder.record("video.watched", learner_id="s-17", object_id="math/g5/ch02/v03", data={"progress": 0.6})
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pisync_agent.errors import InvalidEvent, OutboxFull, StoreUnusable
    from pisync_agent.recorder import Recorder

__all__ = ["InvalidEvent", "OutboxFull", "Recorder", "StoreUnusable"]

_HOME_OF = {
    "InvalidEvent": "pisync_agent.errors",
    "OutboxFull": "pisync_agent.errors",
    "Recorder": "pisync_agent.recorder",
    "StoreUnusable": "pisync_agent.errors",
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: commands that need none of it start faster.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME_OF[name]), name)
