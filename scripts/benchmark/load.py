"""Load on the receiver, from a process of its own: wrk where it is installed, else a small generator made here.

Both keep `connections` open and send, on each, the next request as soon as the last one is answered.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import uvloop

LUA = """
local file = assert(io.open("{path}", "rb"))
local requests, next = {{}}, 0
for line in file:lines() do
  local token, body = line:match("^(%S+) (.*)$")
  requests[#requests + 1] = {{token, body}}
end
file:close()
function init(args)
  for i, row in ipairs(requests) do
    local headers = {{["Authorization"] = "Bearer " .. row[1], ["Content-Type"] = "application/json"}}
    requests[i] = wrk.format("POST", "{target}", headers, row[2])
  end
end
function request()
  next = next % #requests + 1
  return requests[next]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('{{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one round of load saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int

    @property
    def rate(self) -> float:
        """Answered requests a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, kw_only=True)
class Post:
    """A JSON body and whose it is."""

    token: str
    body: str


def posts(folder: Path, *, port: int, target: str, what: list[Post], connections: int, seconds: float) -> Load:
    """POST `what`, over and over, for `seconds`."""
    if shutil.which("wrk"):
        return _wrk(folder, port=port, target=target, what=what, connections=connections, seconds=seconds)
    raw = [raw_request(target, post.token, post.body.encode()) for post in what]
    share = [raw[number::connections] for number in range(connections)]
    return _own({"port": port, "seconds": seconds, "cycle": True}, share, folder)


def batches(folder: Path, *, port: int, per_connection: list[list[bytes]]) -> Load:
    """Send each connection's raw requests once."""
    return _own({"port": port, "seconds": 600, "cycle": False}, per_connection, folder)


def raw_request(target: str, token: str, body: bytes, *, gzipped: bool = False) -> bytes:
    head = [
        f"POST {target} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(["Content-Encoding: gzip"] if gzipped else []),
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _wrk(folder: Path, *, port: int, target: str, what: list[Post], connections: int, seconds: float) -> Load:
    rows, script = folder / "requests.txt", folder / "requests.lua"
    rows.write_text("".join(f"{post.token} {post.body}\n" for post in what))
    script.write_text(LUA.format(path=rows, target=target))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return Load(**json.loads(result.stderr.splitlines()[-1]))


def _own(plan: dict[str, Any], per_connection: list[list[bytes]], folder: Path) -> Load:
    files = []
    for number, requests in enumerate(per_connection):
        path = folder / f"requests-{number}"
        path.write_bytes(b"".join(len(request).to_bytes(4, "big") + request for request in requests))
        files.append(str(path))
    (folder / "plan.json").write_text(json.dumps(plan | {"files": files}))
    command = [sys.executable, __file__, str(folder / "plan.json")]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, stdin=subprocess.DEVNULL)
    return Load(**json.loads(result.stdout))


class Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered. Understands answers with a Content-Length."""

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
        self.send_next()

    def send_next(self) -> None:
        self._sent = time.perf_counter()
        request = next(self._requests, None)
        if request is None or self._sent >= self._until:
            self.finished.set_result(None)
        else:
            self._transport.write(request)

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
        self.send_next()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.finished.done():
            self.statuses[0] += 1
            self.finished.set_result(None)


async def generate(plan: dict[str, Any]) -> dict[str, float]:
    """Carry out a plan: `port`, `seconds`, `cycle`, `files` of length-prefixed requests, one a connection."""
    loop = asyncio.get_running_loop()
    open_ones: list[Connection] = []
    for requests in map(_requests_in, plan["files"]):
        one = Connection(requests, again=plan["cycle"])
        await loop.create_connection(lambda one=one: one, "127.0.0.1", plan["port"])  # type: ignore[misc]
        open_ones.append(one)
    start = time.perf_counter()
    for one in open_ones:
        one.begin(until=start + plan["seconds"])
    await asyncio.gather(*(one.finished for one in open_ones))
    seconds = time.perf_counter() - start
    taken = sorted(took for one in open_ones for took in one.seconds)
    statuses = sum((one.statuses for one in open_ones), Counter[int]())
    return {
        "requests": len(taken),
        "seconds": seconds,
        "p50_ms": taken[len(taken) // 2] * 1000,
        "p99_ms": taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1000,
        "failed": sum(count for status, count in statuses.items() if not 200 <= status < 300),
    }


def _requests_in(file: str) -> list[bytes]:
    data = Path(file).read_bytes()
    requests, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        requests.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return requests


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(generate(json.loads(Path(sys.argv[1]).read_text())))))
