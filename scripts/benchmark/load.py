"""Load on servers, from a process of its own: wrk where it is installed, otherwise a small generator.

Both keep connections open and send, on each, the next request as soon as the last answer is complete.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final, cast

import uvloop

LUA: Final = """
local file = assert(io.open("{path}", "rb"))
local data, requests, at, next = file:read("*a"), {{}}, 1, 0
file:close()
while at < #data do
  local a, b, c, d = data:byte(at, at + 3)
  local size = ((a * 256 + b) * 256 + c) * 256 + d
  requests[#requests + 1] = data:sub(at + 4, at + 3 + size)
  at = at + 4 + size
end
function request()
  next = next % #requests + 1
  return requests[next]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('{{"requests": %d, "seconds": %f, "p99_ms": %f, "failed": %d}}\\n', summary.requests,
    summary.duration / 1e6, latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a round of load saw."""

    requests: int
    seconds: float
    p99_ms: float
    failed: int

    @property
    def rate(self) -> float:
        """Answered requests a second. Raises RuntimeError if any failed."""
        self.check()
        return self.requests / self.seconds

    def check(self) -> None:
        if self.failed:
            raise RuntimeError(f"{self.failed} of {self.requests} requests failed")


def request(method: str, target: str, token: str, body: bytes = b"", *headers: str) -> bytes:
    """Return a request's bytes."""
    head = [
        f"{method} {target} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {token}",
        *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def repeat(folder: Path, ports: Sequence[int], requests: list[bytes], *, connections: int, seconds: int) -> Load:
    """Send the requests over and over for some seconds; the connections are spread over the ports."""
    if shutil.which("wrk") and len(ports) == 1:
        return _wrk(folder, ports[0], requests, connections=connections, seconds=seconds)
    shares = [requests[number::connections] for number in range(connections)]
    return _own(folder, ports, shares, seconds=seconds, again=True)


def once(folder: Path, port: int, per_connection: list[list[bytes]]) -> Load:
    """Send each connection's requests once."""
    return _own(folder, [port], per_connection, seconds=600, again=False)


def _wrk(folder: Path, port: int, requests: list[bytes], *, connections: int, seconds: int) -> Load:
    script = folder / "requests.lua"
    script.write_text(LUA.format(path=_written(folder / "requests", requests)))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return Load(**json.loads(result.stderr.splitlines()[-1]))


def _own(folder: Path, ports: Sequence[int], shares: list[list[bytes]], *, seconds: int, again: bool) -> Load:
    files = [
        [ports[number % len(ports)], _written(folder / f"requests-{number}", share)]
        for number, share in enumerate(shares)
    ]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"seconds": seconds, "again": again, "files": files}))
    command = [sys.executable, __file__, str(plan)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, stdin=subprocess.DEVNULL)
    return Load(**json.loads(result.stdout))


def _written(path: Path, requests: list[bytes]) -> str:
    path.write_bytes(b"".join(len(request).to_bytes(4, "big") + request for request in requests))
    return str(path)


def _read(file: str) -> list[bytes]:
    data = Path(file).read_bytes()
    requests, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        requests.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return requests


class Connection(asyncio.Protocol):
    """Send the next request when the last answer is complete. Understands answers with a Content-Length."""

    def __init__(self, requests: list[bytes], *, again: bool) -> None:
        self._requests = iter(cycle(requests) if again else requests)
        self._until = 0.0
        self._read = b""
        self._sent = 0.0
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.finished = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def begin(self, *, until: float) -> None:
        self._until = until
        self._send_next()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._read = body[length:]
        self.statuses[int(head[9:12])] += 1
        self.seconds.append(time.perf_counter() - self._sent)
        self._send_next()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.finished.done():
            self.statuses[0] += 1
            self.finished.set_result(None)

    def _send_next(self) -> None:
        self._sent = time.perf_counter()
        request = next(self._requests, None)
        if request is None or self._sent >= self._until:
            self.finished.set_result(None)
        else:
            self._transport.write(request)


async def generate(plan: dict[str, Any]) -> dict[str, float]:
    """Carry out a plan: `seconds`, `again`, and in `files` a port and a file of requests for each connection."""
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    for port, file in plan["files"]:
        connection = Connection(_read(file), again=plan["again"])
        await loop.create_connection(lambda made=connection: made, "127.0.0.1", port)  # type: ignore[misc]
        connections.append(connection)
    start = time.perf_counter()
    for connection in connections:
        connection.begin(until=start + plan["seconds"])
    await asyncio.gather(*(connection.finished for connection in connections))
    seconds = time.perf_counter() - start
    taken = sorted(took for connection in connections for took in connection.seconds)
    statuses = sum((connection.statuses for connection in connections), Counter[int]())
    return {
        "requests": len(taken),
        "seconds": seconds,
        "p99_ms": taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1000,
        "failed": sum(count for status, count in statuses.items() if not 200 <= status < 300),
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(generate(json.loads(Path(sys.argv[1]).read_text())))))
