"""Numbers and times as text for people."""

import time
from typing import Final

WIDTH: Final = 80
"""Of a terminal: nothing that `status` prints is wider."""

_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def size(number: float) -> str:
    """Return `12.1 MiB`."""
    for unit, name in _SIZES:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} bytes"


def span(seconds: float) -> str:
    """Return `40 s`, `12 min`, `3 h 5 min` or `4 days`."""
    whole = round(max(0.0, seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{round(minutes / 1440)} days"


def moment(ms: int) -> str:
    """Return `2026-11-23 10:00:00` in this device's time zone, or the bare number if it is outside all calendars."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms since 1970"


def row(name: str, value: str, indent: int) -> str:
    """Return `name`, and beside it `value` in lines that fit the terminal."""
    return f"{name:<{indent}}" + f"\n{'':<{indent}}".join(_lines(value, WIDTH - indent))


def paragraph(text: str) -> str:
    """Return `text` in lines that fit the terminal."""
    return "\n".join(_lines(text, WIDTH))


def paragraphs(text: str) -> str:
    """Fold a text of several paragraphs; lines that begin with a space, such as examples, stay as they are."""
    found = [[""]]
    for line in text.splitlines():
        if line[:1].strip() and found[-1][0][:1].strip():
            found[-1].append(line)
        else:
            found.append([line])
    return "\n".join(paragraph(" ".join(lines)) if lines[0][:1].strip() else lines[0] for lines in found[1:])


def _lines(text: str, room: int) -> list[str]:
    """Fold a text at its spaces, and a longer word anywhere. To load `textwrap` would cost `status` a tenth."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines += [word[at : at + room] for at in range(0, len(word), room)]
    return lines


def count(number: int, noun: str) -> str:
    """Return `1 event` or `1,204 events`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def pending(number: int) -> str:
    """Return `nothing pending`, `1 event pending` or `1,204 events pending`."""
    return f"{count(number, 'event')} pending" if number else "nothing pending"
