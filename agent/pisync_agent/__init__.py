"""The agent: records what learners do on this device, keeps it, and delivers it when there is a link.

from pisync_agent import Recorder

with Recorder() as recorder:
    recorder.record("video.watched", learner_id="s-17", object_id="math/g5/ch02/v03", data={"progress": 0.6})
"""

from typing import TYPE_CHECKING, Any

from pisync_agent.errors import InvalidEvent, OutboxFull, StoreUnusable

if TYPE_CHECKING:
    from pisync_agent.recorder import Recorder

__all__ = ["InvalidEvent", "OutboxFull", "Recorder", "StoreUnusable"]


def __getattr__(name: str) -> Any:
    """Import the recorder when an app asks for it: every command imports this package, and most need no recorder."""
    if name != "Recorder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pisync_agent.recorder import Recorder

    return Recorder
