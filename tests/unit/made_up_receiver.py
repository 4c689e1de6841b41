"""A receiver in memory behind httpx's transport, with faults by request: for tests of the agent's logic.

receiver = MadeUpReceiver()
receiver.next(status(503, retry_after="7"), lost_answer)   # the next two requests to /api/events
ReceiverClient(identity, clock=clock, transport=receiver.transport())
"""

import gzip
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import httpx

from pisync_common.limits import BATCH_EVENTS, BODY_BYTES
from pisync_common.problems import CONTENT_TYPE, problem_type
from pisync_common.wire import NONCE_HEADER

DEVICE = "pibook-1"
TOKEN = "psd_" + "t" * 43
URL = "http://127.0.0.1:9"

Proceed = Callable[[], httpx.Response]
Fault = Callable[[httpx.Request, Proceed], httpx.Response]


class MadeUpReceiver:
    """Stores what it is sent. `faults` and `sync_event_faults` are used up one by one, each by one request."""

    def __init__(self, *, device_id: str = DEVICE, server_time: str = "2026-11-23T10:00:00.000Z") -> None:
        self.device_id = device_id
        self.server_time = server_time
        self.streams: dict[str, dict[int, dict[str, Any]]] = {}
        self.rejects: dict[int, str] = {}
        """Codes by seq; in the first stream it sees only, if `conflict`."""
        self.batches: list[list[int]] = []
        """The seqs of each batch that reached it, in order."""
        self.sent: list[dict[str, Any]] = []
        self.sync_events: list[dict[str, Any]] = []
        self.keys: dict[str, dict[str, Any]] = {}
        self.requests: list[httpx.Request] = []
        self.faults: deque[Fault] = deque()
        self.sync_event_faults: deque[Fault] = deque()
        self.always: Fault | None = None
        """For every batch that finds no other fault."""
        self.hook: Callable[[], None] = lambda: None
        """Called with every batch, before anything is done."""

    def next(self, *faults: Fault) -> None:
        self.faults.extend(faults)

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._handle)

    @property
    def stored(self) -> list[int]:
        """The seqs of the stream seen last."""
        return sorted(list(self.streams.values())[-1]) if self.streams else []

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.requests]

    @staticmethod
    def seqs_of(request: httpx.Request) -> list[int]:
        """Return the seqs of a batch."""
        return [event["seq"] for event in json.loads(gzip.decompress(request.content))["events"]]

    def watermark(self, stream: str) -> int:
        mark = 0
        while mark + 1 in self.streams.get(stream, {}):
            mark += 1
        return mark

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path == "/api/events":
            self.hook()
            fault = self.faults.popleft() if self.faults else self.always
            body = json.loads(gzip.decompress(request.content))
            assert len(request.content) <= BODY_BYTES
            assert len(body["events"]) <= BATCH_EVENTS
            self.batches.append([event["seq"] for event in body["events"]])
            return self._faulty(fault, request, lambda: self._batch(body))
        fault = self.sync_event_faults.popleft() if self.sync_event_faults else None
        return self._faulty(fault, request, lambda: self._sync_event(request))

    def _faulty(self, fault: Fault | None, request: httpx.Request, proceed: Proceed) -> httpx.Response:
        answer = proceed() if fault is None else fault(request, proceed)
        if answer.headers.get("Content-Type") in ("application/json", CONTENT_TYPE):  # it is the receiver's own
            answer.headers.setdefault(NONCE_HEADER, request.headers[NONCE_HEADER])
        return answer

    def _batch(self, body: dict[str, Any]) -> httpx.Response:
        first_seen = not self.streams or next(iter(self.streams)) == body["stream"]
        stream = self.streams.setdefault(body["stream"], {})
        self.sent.append(body["sent"])
        stored, duplicates, rejected = 0, 0, []
        for event in body["events"]:
            code = self.rejects.get(event["seq"]) if first_seen else None
            if code is not None:
                rejected.append({"seq": event["seq"], "code": code, "detail": "because"})
            elif event["seq"] in stream:
                duplicates += 1
            else:
                stored += 1
            stream[event["seq"]] = event
        return httpx.Response(
            200,
            json={
                "device_id": self.device_id,
                "stream": body["stream"],
                "stored": stored,
                "duplicates": duplicates,
                "rejected": rejected,
                "watermark": self.watermark(body["stream"]),
                "server_time": self.server_time,
            },
        )

    def _sync_event(self, request: httpx.Request) -> httpx.Response:
        event = json.loads(request.content)
        key = request.headers["Idempotency-Key"]
        if key not in self.keys:
            self.sync_events.append(event)
            self.keys[key] = event | {"id": len(self.sync_events), "received_at": self.server_time}
        return httpx.Response(201, json=self.keys[key])


def status(code: int, *, retry_after: str | None = None, problem: str | None = None, detail: str = "because") -> Fault:
    """An answer of this status: with the receiver's own problem, or with a gateway's page."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}

    def fault(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        if problem is None:
            return httpx.Response(code, headers=headers, html=f"<h1>{code}</h1>")
        body = {"type": problem_type(problem), "title": "T", "status": code, "detail": detail, "request_id": "r"}
        return httpx.Response(code, headers=headers | {"Content-Type": CONTENT_TYPE}, content=json.dumps(body).encode())

    return fault


def raising(kind: type[httpx.TransportError]) -> Fault:
    """The request does not come through."""

    def fault(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        raise kind("made up", request=request)

    return fault


def lost_answer(request: httpx.Request, proceed: Proceed) -> httpx.Response:
    """The receiver stores, and its answer is lost."""
    proceed()
    raise httpx.ReadError("made up", request=request)


def too_slow(request: httpx.Request, proceed: Proceed) -> httpx.Response:
    """The receiver stores, and its answer takes too long."""
    proceed()
    raise httpx.ReadTimeout("made up", request=request)


def portal(request: httpx.Request, proceed: Proceed) -> httpx.Response:
    """A captive portal's page."""
    return httpx.Response(200, html="<h1>Please sign in</h1>")


def larger_than(events: int, fault: Fault) -> Fault:
    """`fault` for batches of more than `events` events; the others proceed."""

    def chosen(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        number = len(json.loads(gzip.decompress(request.content))["events"])
        return fault(request, proceed) if number > events else proceed()

    return chosen


def containing(seq: int, fault: Fault) -> Fault:
    """`fault` for batches with this event in it; the others proceed."""

    def chosen(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        events = json.loads(gzip.decompress(request.content))["events"]
        return fault(request, proceed) if seq in [event["seq"] for event in events] else proceed()

    return chosen
