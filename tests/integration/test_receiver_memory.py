"""Whatever arrives, the receiver's memory stays bounded, and what it acknowledged meanwhile is stored."""

import asyncio
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.processes import ReceiverProcess

MIB: Final = 1024 * 1024
BOUND_MIB: Final = 400
"""What it may take at its peak: itself (60), unfinished bodies (40), 16 MiB of bodies that wait and are several times
that once decoded, a page for each caller that reads nothing (80), and what connections buffer. The load: 18 GiB."""
DEVICE: Final = "pibook-1"
EACH: Final = 40
"""Callers of each kind, all at once."""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path / "receiver", "--max-waiting-bytes", "16MiB") as running:
        yield running


def enrolled(receiver: ReceiverProcess, devices: list[str]) -> list[str]:
    """Their tokens."""
    code = receiver.enrollment_code("--uses", str(len(devices)))
    bodies = [{"code": code, "device_id": device} for device in devices]
    return [httpx.post(receiver.url + "/api/enroll", json=body).json()["token"] for body in bodies]


def head(what: str, token: str, *lines: str) -> bytes:
    text = "\r\n".join([f"{what} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", *lines, "", ""])
    return text.encode()


def batch(stream: str, *, size: int = 7_000) -> bytes:
    """1,000 events, some 7 MiB as JSON and a few hundred KiB as they travel."""
    events = [
        {
            "seq": seq,
            "type": "note.taken",
            "occurred_at": "2026-11-23T08:00:00Z",
            "data": {"text": f"{seq}" + "x" * size},
        }
        for seq in range(1, 1001)
    ]
    return gzip.compress(json.dumps({"device_id": DEVICE, "stream": stream, "events": events}).encode())


def post(token: str, body: bytes, *, length: int | None = None) -> bytes:
    lines = ("Content-Type: application/json", "Content-Encoding: gzip", f"Content-Length: {length or len(body)}")
    return head("POST /api/events", token, *lines) + body


async def status_of(port: int, request: bytes) -> int:
    """Send a request and read the head of its answer; 0 where the connection ends first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        answer = await reader.readline()
        return int(answer.split()[1]) if answer else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


async def held(port: int, request: bytes) -> asyncio.Transport:
    """A caller that sends this, and then neither sends nor reads anything."""
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
    transport.pause_reading()
    transport.write(request)
    return transport


async def attack(port: int, device: str, slow: list[str], admin: str) -> tuple[Counter[int], list[str]]:
    """The statuses of whole requests by count, and the streams whose batches were acknowledged."""
    bomb = gzip.compress(bytes(900 * MIB // 2), 9)
    bombs = await asyncio.gather(*(status_of(port, post(token, bomb)) for token in slow))
    holding = [await held(port, post(token, os.urandom(1000 * 1024), length=MIB)) for token in slow]
    holding += [await held(port, head("GET /api/events?limit=1000", admin, "Accept: text/csv")) for _ in range(EACH)]
    holding += [await held(port, head("GET /api/events?limit=1000", admin)) for _ in range(EACH)]
    streams = [f"stream-{number}" for number in range(EACH)]
    made = [post(device, batch(stream)) for stream in streams]
    answered = await asyncio.gather(*(status_of(port, request) for request in made))
    for caller in holding:
        caller.abort()
    acknowledged = [stream for stream, status in zip(streams, answered, strict=True) if status == 200]
    return Counter([*answered, *bombs]), acknowledged


HALF_HEADS: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000,
    b"GET /" + b"a" * 60_000,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 15_000,
    b"POST /api/enroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 15_000,
)


async def half_heads(port: int, count: int) -> int:
    """Open connections that send half a head and then nothing; the status of another caller meanwhile."""
    holding = [await held(port, HALF_HEADS[number % len(HALF_HEADS)]) for number in range(count)]
    status = await status_of(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    for caller in holding:
        caller.abort()
    return status


def test_half_heads_of_a_thousand_connections_find_a_bound(receiver: ReceiverProcess) -> None:
    assert asyncio.run(half_heads(receiver.port, 1_000)) == 200
    assert peak_mib(receiver.pid) < 200


def peak_mib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def test_hostile_load_finds_a_bound(receiver: ReceiverProcess) -> None:
    admin = receiver.admin_token()
    token, *slow = enrolled(receiver, [DEVICE, *(f"slow-{number}" for number in range(EACH))])
    assert asyncio.run(status_of(receiver.port, post(token, batch("first")))) == 200
    statuses, acknowledged = asyncio.run(attack(receiver.port, token, slow, admin))
    assert statuses.keys() <= {200, 413, 429, 503}
    assert statuses[413] == EACH
    assert acknowledged
    assert peak_mib(receiver.pid) < BOUND_MIB
    headers = {"Authorization": f"Bearer {admin}"}
    answer = httpx.get(f"{receiver.url}/api/devices/{DEVICE}/completeness", headers=headers, timeout=60).json()
    stored = {stream["stream"]: stream["watermark"] for stream in answer["streams"]}
    assert {stream: stored.get(stream) for stream in acknowledged} == dict.fromkeys(acknowledged, 1000)
