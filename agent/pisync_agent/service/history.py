"""The last sync runs, in files beside the outbox: `pisync history`.

Not in the outbox: there a run would cost another page of its log, and an older PiSync refuses a newer schema. A line is
appended and not flushed, so a power cut may lose the newest; a full file becomes the file before it, which bounds both.
What is read is checked: a damaged line is left out.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pisync_agent.outbox import files
from pisync_common.limits import KIB

FILES: Final = ("runs.jsonl", "runs.1.jsonl")
"""The newest, and the one before it."""
FILE_BYTES: Final = 64 * KIB
RUNS: Final = 500
"""As many are shown at most."""
DETAIL_CHARS: Final = 300

_COUNTS: Final = ("delivered", "duplicates", "rejected", "waiting", "bytes_sent")
_NUMBERS: Final = ("seconds", "speed_mbit")
_TEXTS: Final = ("code", "kind", "detail")
_LATEST_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""


def append(home: Path, run: Mapping[str, Any]) -> None:
    """Add a run that delivered something, or failed. A disk that refuses it is noticed elsewhere."""
    found = checked(run)
    if found is None or not (found["failure"] or any(found[name] for name in ("delivered", "duplicates", "rejected"))):
        return
    if found["failure"] and found["failure"]["detail"]:
        found["failure"]["detail"] = found["failure"]["detail"][:DETAIL_CHARS]
    line = json.dumps(found, separators=(",", ":")).encode() + b"\n"
    newest, before = (home / name for name in FILES)
    with suppress(OSError):
        fd = os.open(newest, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, files.FILE_MODE)
        try:
            os.write(fd, line)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size >= FILE_BYTES:
            newest.replace(before)


def runs(home: Path, limit: int = RUNS) -> list[dict[str, Any]]:
    """Return the newest runs, newest first. Raises OSError."""
    found: list[dict[str, Any]] = []
    for name in FILES:
        for line in reversed(_lines(home / name)):
            run = parsed(line)
            if run is not None and len(found) < limit:
                found.append(run)
    return found


def parsed(text: str | bytes) -> dict[str, Any] | None:
    """Return a run from its JSON; None if it is not one."""
    try:
        return checked(json.loads(text))
    except (ValueError, RecursionError):
        return None


def checked(fields: object) -> dict[str, Any] | None:
    """Return a run with every field in its type, whatever was stored; None if it has no time."""
    if not isinstance(fields, Mapping):
        return None
    at_ms = fields.get("at_ms")
    if type(at_ms) is not int or not 0 <= at_ms <= _LATEST_MS:
        return None
    return {
        "at_ms": at_ms,
        **{name: int(_number(fields.get(name))) for name in _COUNTS},
        **{name: float(_number(fields.get(name))) for name in _NUMBERS},
        "errors": dict(_errors(fields.get("errors"))),
        "offline": fields.get("offline") is True,
        "failure": _failure(fields.get("failure")),
    }


def _number(value: object) -> int | float:
    """Return a plausible number; 0 for anything else, such as NaN, a boolean or 10**300."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    return 0


def _errors(value: object) -> Iterator[tuple[str, int]]:
    for name, number in value.items() if isinstance(value, Mapping) else ():
        if type(name) is str and type(number) is int:
            yield name, number


def _failure(value: object) -> dict[str, str | None] | None:
    if not isinstance(value, Mapping):
        return None
    found = {name: text if type(text := value.get(name)) is str else None for name in _TEXTS}
    return found | {"code": found["code"] or "unknown", "detail": found["detail"] or ""}


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            return file.read(2 * FILE_BYTES).splitlines()
    except FileNotFoundError:
        return []
