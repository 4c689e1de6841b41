"""The messages on the agent's Unix socket, JSON, one a line, each with `do`; and the client's side of them.

docs/local-protocol.md describes `hello`, `record` and `status` for other languages; VERSION counts their versions.

{"do": "hello"} → {"hello": {"protocol": VERSION, "agent": "0.3.0"}}
{"do": "record", "events": [event, …], "expires_ms": n} → {"seqs": [seq or {"code", "detail"}, …]}
    At most RECORD_EVENTS, each as the recorder writes it (the fields of NewEvent, with `stamp`) or as apps do (see
    `app_events`). Read at CLOCK_BOOTTIME `expires_ms` or later, it is refused: its sender has given up.
    An event with `adopted_from` is recorded once; its repeat is answered by 0.
{"do": "status"} → {"status": {"pid", "kind", "running", "next_run_in_s", …}}
{"do": "read", "what": "state"} → {"read": {…}}; "events", "dead" and "runs" have "after", "limit" (and "all"): see
    `views`
{"do": "sync"} → {"progress": {…}}, any number of times and at least every few seconds, then {"result": {…}}
{"do": "requeue", "seq": n} → {"seq": n}
{"do": "reload"} → {"reloaded": true}: the identity has changed, read it again

Each may be answered by {"error": {"code", "detail"}} instead: nothing was done. Answers come in the order of the
messages of a connection. The client's calls return None where no service runs, and raise NotAnswering where it does
not answer, NotAllowed where this user may not ask it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from pisync_agent.errors import AgentError, InvalidEvent, NotAnswering, NotEnrolled, OutboxFull, StoreUnusable
from pisync_agent.outbox import files
from pisync_agent.service.access import reach_hint
from pisync_common.unix_socket import LineClient

VERSION: Final = 1

HELLO: Final = "hello"
RECORD: Final = "record"
STATUS: Final = "status"
READ: Final = "read"
SYNC: Final = "sync"
REQUEUE: Final = "requeue"
RELOAD: Final = "reload"

RECORD_EVENTS: Final = 1000
"""Events in one message."""

VALUES: Final = ("expires_ms", "seq", "what", "after", "limit", "all")
"""What a message may have beside `do` and `events`: numbers and texts."""

ANSWER_S: Final = 10.0
"""How long the client waits for an answer, and for progress."""
STATUS_S: Final = 2.0
"""How long `status` waits: it is asked when something is wrong."""

NOT_LISTENING: Final = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)


class BadMessage(AgentError):
    """A message over the socket is not one of these."""

    code = "bad_message"


class Stopped(AgentError):
    """The process that was asked is stopping and has not done it: another process may."""

    code = "stopped"


class NotAllowed(StoreUnusable, PermissionError):
    """This user may not reach the service's socket."""


_ERRORS: Final[Mapping[str, type[AgentError]]] = {
    kind.code: kind for kind in (InvalidEvent, OutboxFull, StoreUnusable, NotEnrolled, BadMessage, Stopped)
}


def record_request(events: Sequence[Mapping[str, object]], expires_ms: int) -> dict[str, object]:
    """Ask the service to record `events` (see `NewEvent.fields`) in one commit, before CLOCK_BOOTTIME `expires_ms`."""
    return {"do": RECORD, "expires_ms": expires_ms, "events": events}


def record_results(answer: Mapping[str, Any], number: int) -> list[int | AgentError]:
    """Return the result of each of `number` events. Raises the service's error, or ConnectionResetError."""
    if "error" in answer:
        raise error_from(answer["error"])
    seqs = answer.get("seqs")
    if not isinstance(seqs, list) or len(seqs) != number:
        raise ConnectionResetError(f"not an answer to a record: {str(answer)[:80]}")
    return [seq if type(seq) is int else error_from(seq) for seq in seqs]


def record_answer(results: Sequence[int | AgentError]) -> dict[str, object]:
    """Return the service's answer to a record request."""
    return {"seqs": [error_fields(result) if isinstance(result, AgentError) else result for result in results]}


def error_answer(error: AgentError) -> dict[str, object]:
    """Return the service's answer when nothing was done."""
    return {"error": error_fields(error)}


def error_fields(error: AgentError) -> dict[str, str]:
    return {"code": error.code, "detail": str(error)}


def error_from(fields: object) -> AgentError:
    """Return the error another process met; StoreUnusable where its code is unknown here."""
    known = fields if isinstance(fields, Mapping) else {}
    return _ERRORS.get(str(known.get("code")), StoreUnusable)(str(known.get("detail", "the service failed")))


def not_answering(home: Path, outcome: str) -> NotAnswering:
    """Return the error for a writer that is silent; `outcome` says what became of the request."""
    from pisync_agent.service.lock import holder_of  # only for this text

    who = "the service" if files.socket(home).exists() else "the writer of the outbox"
    holder = holder_of(files.lock(home))
    state = f"({holder}) runs but does not answer" if holder else "does not answer; it may be starting"
    return NotAnswering(
        f"{who} in {home} {state}: {outcome}. Everything recorded before is kept. Try again in a moment; if it stays "
        "silent: sudo systemctl restart pisync-agent"
    )


def live_status(socket: Path, *, timeout: float = STATUS_S) -> dict[str, Any] | None:
    """Return the service's status."""
    answer = _ask(socket, {"do": STATUS}, timeout)
    return None if answer is None else _part(answer, "status", dict)


def read(
    socket: Path, what: str, fields: Mapping[str, int] | None = None, *, timeout: float = ANSWER_S
) -> dict[str, Any] | None:
    """Return what the service shows of the outbox (see `views`)."""
    answer = _ask(socket, {"do": READ, "what": what} | dict(fields or {}), timeout)
    return None if answer is None else _part(answer, "read", dict)


def requeue(socket: Path, seq: int) -> int | None:
    """Have the service requeue a dead letter; return its new seq. Raises its error, OSError."""
    outcome = f"event {seq} may have been requeued; repeating the command sends it once"
    answer = _ask(socket, {"do": REQUEUE, "seq": seq}, ANSWER_S, outcome)
    return None if answer is None else _part(answer, "seq", int)


def reload(socket: Path) -> bool:
    """Have the service read the identity again; return whether one runs."""
    return _ask(socket, {"do": RELOAD}, ANSWER_S) is not None


def sync(
    socket: Path, on_progress: Callable[[Mapping[str, Any]], None], *, silence: float = ANSWER_S
) -> dict[str, Any] | None:
    """Have the service make a sync run; return its result.

    Raises the service's error (NotEnrolled, …); Stopped, or OSError, if it ended before the run was over;
    NotAnswering after `silence` seconds without a message.
    """
    with _client(socket, silence, "what is pending is kept") as client:
        if client is None:
            return None
        answer = client.ask({"do": SYNC})
        while "progress" in answer:
            on_progress(answer["progress"])
            answer = client.receive()
    result: dict[str, Any] = _part(answer, "result", dict)
    return result


def connect(socket: Path, timeout: float) -> LineClient | None:
    """Connect to the service; return None if none runs. Raises NotAllowed, TimeoutError."""
    try:
        return LineClient(socket, timeout=timeout)
    except NOT_LISTENING:
        return None
    except PermissionError as error:
        raise NotAllowed(f"{socket}: this user may not ask the service. {reach_hint(socket.parent)}") from error


def _ask(
    socket: Path, message: Mapping[str, Any], timeout: float, outcome: str = "nothing is lost"
) -> dict[str, Any] | None:
    with _client(socket, timeout, outcome) as client:
        return None if client is None else client.ask(message)


@contextmanager
def _client(socket: Path, timeout: float, outcome: str) -> Iterator[LineClient | None]:
    """Yield a connection to the service; None if none runs."""
    try:
        with connect(socket, timeout) or nullcontext() as client:
            yield client
    except TimeoutError as error:
        raise not_answering(socket.parent, outcome) from error


def _part(answer: Mapping[str, Any], name: str, kind: type) -> Any:
    if "error" in answer:
        raise error_from(answer["error"])
    if not isinstance(answer.get(name), kind):
        raise ConnectionResetError(f"not an answer: {str(answer)[:80]}")
    return answer[name]
