"""The agent: records what learners do on this device, keeps it, and delivers it when there is a link.

from pisync_agent import Recorder

with Recorder() as recorder:
    recorder.record("video.watched", learner_id="s-17", object_id="math/g5/ch02/v03", data={"progress": 0.6})
"""

from pisync_agent.errors import InvalidEvent, OutboxFull, StoreUnusable
from pisync_agent.recorder import Recorder

__all__ = ["InvalidEvent", "OutboxFull", "Recorder", "StoreUnusable"]
