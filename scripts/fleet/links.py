"""HTTP/1.1 over a connection that is kept: one request at a time, and only what a receiver's answers need.

Hand-written, because a fleet is 400 connections in one process: over that many httpx makes some 80 requests a second
and this 5,000 to 7,000 (two cores, shared with the server), as httpx looks through its whole pool for each.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A receiver's answer; status 0 where there was none."""

    status: int
    body: bytes = b""
    retry_after: float | None = None


class Link:
    """A connection to one receiver, reopened when it broke."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, token: str, body: bytes) -> Reply:
        """Send a gzipped JSON body and return the answer."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            writer.write(head.encode() + body)
            return await self._reply(reader)
        except (OSError, EOFError, ValueError):
            self.close()
            return Reply(status=0)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _reply(self, reader: asyncio.StreamReader) -> Reply:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self.close()
        after = headers.get("retry-after", "")
        return Reply(status=int(lines[0].split()[1]), body=body, retry_after=float(after) if after.isdigit() else None)
