"""A body for each call that takes one: the document and its page show it, and tests send it."""

from collections.abc import Mapping
from typing import Any, Final

import pisync_receiver.api.schemas as schemas

BODIES: Final[Mapping[type, Mapping[str, Any]]] = {
    schemas.Batch: {
        "device_id": "pibook-0042",
        "stream": "9f3c1a7be2d04c55",
        "events": [
            {
                "seq": 1,
                "type": "video.watched",
                "occurred_at": "2026-11-23T08:12:09.120Z",
                "learner_id": "s-17",
                "object_id": "math/g5/ch02/v03",
                "data": {"seconds_watched": 240},
            }
        ],
    },
    schemas.SyncEventRequest: {
        "device_id": "pibook-0042",
        "timestamp": "2026-11-23T08:15:00Z",
        "total_files_synced": 48,
        "total_errors": 0,
        "internet_speed": 1.5,
    },
    schemas.Enrollment: {"code": "K7MQ-2XPD-9RTA-WW4Z"},
    schemas.CodeRequest: {"site": "Hill School", "label": "class 5", "count": 30},
    schemas.TokenRequest: {"scope": "viewer", "label": "district office", "sites": ["Hill School"]},
    schemas.Rotation: {"overlap_s": 7200},
    schemas.DeviceChanges: {"label": "library, left shelf"},
    schemas.SiteChanges: {"silent_after": "30d"},
    schemas.NewNote: {"text": "screen broken, at the workshop"},
    schemas.RetentionRequest: {"older_than_s": 63_072_000, "dry_run": True},
    schemas.ErasureRequest: {"learner_id": "s-17", "learner_home": "Hill School", "dry_run": True},
}
