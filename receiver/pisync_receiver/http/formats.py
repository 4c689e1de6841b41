"""What every format of an export has in common."""

from typing import Protocol

import msgspec


class Writer(Protocol):
    """Turns pages into an export's bytes. Not shared between exports."""

    async def write(self, page: bytes) -> tuple[bytes, int]:
        """Take a page as JSON; return what can be sent by now, and how many rows the page has."""

    async def end(self) -> bytes:
        """Return the rest."""


def one_line(json: bytes) -> bytes:
    """Return JSON without the line breaks that an event's data was sent with."""
    return msgspec.json.format(json, indent=-1) if b"\n" in json or b"\r" in json else json
