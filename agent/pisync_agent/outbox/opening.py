"""How an outbox is opened."""

import secrets
from collections.abc import Callable
from pathlib import Path

from pisync_agent.clock import Clock, SystemClock
from pisync_agent.outbox import connection, space
from pisync_agent.outbox.files import errors
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.outbox import Outbox


def open_outbox(
    home: Path,
    *,
    limits: OutboxLimits | None = None,
    clock: Clock | None = None,
    random_hex: Callable[[int], str] = secrets.token_hex,
    connect: connection.Connect = connection.connect,
    free_bytes: space.FreeBytes = space.free_bytes,
) -> Outbox:
    """The outbox of `home`, made if there is none. The caller holds the writer's lock (`outbox.lock`) meanwhile.

    An interrupted swap of files is finished, a broken file set aside and salvaged, an older schema migrated.
    Raises StoreUnusable (or OutboxFull) if the outbox cannot be used durably; nothing is thrown away then.
    """
    with errors(home):
        home.mkdir(parents=True, exist_ok=True)
    return Outbox(
        home,
        limits=limits or OutboxLimits(),
        clock=clock or SystemClock(),
        random_hex=random_hex,
        connect=connect,
        free_bytes=free_bytes,
    )
