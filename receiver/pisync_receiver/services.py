"""What handlers work with: everything one app was made of."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pisync_receiver.auth import TokenSource
from pisync_receiver.body import BodyReader
from pisync_receiver.census import Census
from pisync_receiver.conditional import Answers
from pisync_receiver.intake import Intake
from pisync_receiver.metrics import Metrics
from pisync_receiver.openapi import Documents
from pisync_receiver.readiness import Readiness
from pisync_receiver.store import Store


@dataclass(frozen=True, kw_only=True)
class Services:
    """One receiver's parts. Times are milliseconds since 1970."""

    answers: Answers
    store: Store
    intake: Intake
    tokens: TokenSource
    bodies: BodyReader
    metrics: Metrics
    documents: Documents
    readiness: Readiness
    census: Census
    exports: asyncio.Semaphore
    """A turn for each export under way."""
    now_ms: Callable[[], int]
