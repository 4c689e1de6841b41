"""Size limits of both sides. The receiver refuses more; the agent never sends more.

The last two bound what a setting or a flag may say."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

BODY_BYTES: Final = 1 * MIB
"""A request's body as it is sent (compressed)."""

DECODED_BYTES: Final = 8 * MIB
"""A request's body after decompression."""

BATCH_EVENTS: Final = 1000
"""Events in one batch."""

DATA_BYTES: Final = 64 * KIB
"""One event's `data`, as UTF-8 JSON."""

DATA_DEPTH: Final = 100
"""How deep one event's `data` may nest."""

ID_CHARS: Final = 128
"""A device, stream or boot id, an event type, an idempotency key."""

EVENT_ID_CHARS: Final = 128
"""An event's `id`, the app's own key."""

LEARNER_ID_CHARS: Final = 256
"""A learner id."""

OBJECT_ID_CHARS: Final = 512
"""An object id."""

SITE_CHARS: Final = 256
"""The name of a site."""

SEQ_MAX: Final = 2**53 - 1
"""The largest `seq`: the largest integer every JSON reader keeps exact."""

RECEIPT_RANGES: Final = 100
"""Missing ranges named in one receipt."""

LONGEST_DAYS: Final = 3650
"""The longest time of a setting: no timer and no calendar overflows."""

LARGEST_GIB: Final = 1024 * 1024
"""The largest size of a setting: no counter overflows."""
