"""What lies in the spool folder, counted without opening a file, for those who ask how a device is."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = "spool"
ENDING: Final = ".ndjson"
REFUSED: Final = ".refused"
ENTRIES: Final = 10_000
"""The most entries that are looked at: any app of the group may write the folder."""
LEFT_S: Final = 60.0
"""The service takes a file at once; an older file has met something."""


class SpoolCounts(NamedTuple):
    """How many files are in the folder; at most ENTRIES are counted."""

    pending: int = 0
    left: int = 0
    """Pending for more than LEFT_S."""
    refused: int = 0
    """Files of refused lines, which the agent keeps until a person deletes them."""


def is_event_file(name: str) -> bool:
    """Return whether the service takes a file of this name."""
    return name.endswith(ENDING) and not name.startswith(".")


def counts(home: Path) -> SpoolCounts | None:
    """Return the counts of the spool folder in `home`; None if this user may not look into it."""
    pending = left = refused = 0
    now = time.time()
    try:
        with os.scandir(home / FOLDER) as entries:
            for _, entry in zip(range(ENTRIES), entries, strict=False):
                if is_event_file(entry.name):
                    pending += 1
                    with suppress(FileNotFoundError):  # taken meanwhile
                        left += now - entry.stat(follow_symlinks=False).st_ctime > LEFT_S  # renaming changes it
                refused += entry.name.endswith(ENDING + REFUSED)
    except FileNotFoundError:
        pass
    except OSError:
        return None
    return SpoolCounts(pending=pending, left=left, refused=refused)
