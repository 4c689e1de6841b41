"""Erased learners: what is kept of them is a keyed hash, by which whatever still arrives of them is recognised.

A learner is an id within a home; the home is the event's site unless its app names another. An event of an erased
learner is accounted for as if it were stored, and not written.
"""

import hmac
import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

from msgspec import Struct

from pisync_receiver.domain.rows import Device
from pisync_receiver.domain.submissions import EventBatch

ERASED_BODY: Final = '{"erased":true}'
"""What is left of the body of a rejected event or of a conflicting version."""
KEY_NAME: Final = "erasure "
"""Begins the names of the keys in the table `secrets`."""
KEY_BYTES: Final = 32


class Erased(Struct, frozen=True, kw_only=True):
    """Table `erased`: one learner of one home."""

    learner: str
    """`learner_hash`, in hex."""
    id: str
    """`id_hash`, in hex: intake asks by it, because the site, and so the home, of an event is decided later."""
    receipt: str
    asked_ms: int
    done_ms: int | None = None
    """None while rows are being deleted."""
    events: int = 0
    """How many were deleted."""
    rejected: int = 0
    """Bodies of rejected events and of conflicting versions that were emptied."""


def key_name(key: bytes) -> str:
    """Return the name under which a key is kept."""
    return KEY_NAME + sha256(key).hexdigest()[:16]


def learner_hash(key: bytes, home: str | None, learner_id: str) -> str:
    """Hash a learner. Without the key, ids cannot be tried out."""
    return _hash(key, [home, learner_id])


def id_hash(key: bytes, learner_id: str) -> str:
    """Hash a learner's id alone."""
    return _hash(key, [learner_id])


def hidden(key: bytes, content: bytes) -> bytes:
    """Return what takes the place of the content hash of a version whose body was emptied."""
    return hmac.digest(key, content, "sha256")[: len(content)]


def named(body: str) -> tuple[str | None, str] | None:
    """Return the home and the id of the learner that an event's JSON text names."""
    try:
        value = json.loads(body, parse_int=_skipped, parse_float=_skipped)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(learner_id := value.get("learner_id"), str):
        return None
    home = value.get("learner_home")
    return home if isinstance(home, str) else None, learner_id


def homes_of(device: Device | None, home: str | None) -> list[str | None]:
    """Return which homes a learner may belong to whose event names `home`: without one, where the device is and was."""
    if home is not None or device is None:
        return [home]
    earlier = [site for _, site in json.loads(device.site_history or "[]")]
    return list(dict.fromkeys((device.site, *earlier, None)))


def asked(keys: Sequence[bytes], batches: Iterable[EventBatch]) -> list[str]:
    """Return the hashes of the ids of all learners in some batches."""
    ids: set[str] = set()
    for batch in batches:
        ids.update(event.learner_id for event in batch.events if event.learner_id is not None)
        ids.update(found[1] for bad in batch.invalid if (found := named(bad.body)) is not None)
    return sorted(id_hash(key, learner_id) for key in keys for learner_id in ids)


def _hash(key: bytes, said: Sequence[str | None]) -> str:
    return hmac.digest(key, json.dumps(said).encode(), "sha256").hex()


def _skipped(_: str) -> None:
    """Numbers do not matter here, and may be longer than Python converts."""
