"""The messages on the agent's Unix socket, JSON, one a line, each with `do`; and the client's side of them.

{"do": "record", "events": [fields of NewEvent, …]} → {"seqs": [seq or {"code", "detail"}, …]}
{"do": "status"} → {"status": {"pid", "kind", "running", "next_run_in_s", …}}
{"do": "sync"} → {"progress": {…}}, any number of times, then {"result": {…}}
{"do": "requeue", "seq": n} → {"seq": n}
{"do": "reload"} → {"reloaded": true}: the identity has changed, read it again

Each may be answered by {"error": {"code", "detail"}} instead: nothing was done. Answers come in the order of the
messages of a connection.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pisync_agent.errors import AgentError, InvalidEvent, NotEnrolled, OutboxFull, StoreUnusable
from pisync_common.unix_socket import LineClient

RECORD: Final = "record"
STATUS: Final = "status"
SYNC: Final = "sync"
REQUEUE: Final = "requeue"
RELOAD: Final = "reload"

ANSWER_S: Final = 30.0
"""How long a short request waits for its answer."""

NOT_LISTENING: Final = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)


class BadMessage(AgentError):
    """A message over the socket is not one of these."""

    code = "bad_message"


class Stopped(AgentError):
    """The process that was asked is stopping and has not done it: another process may."""

    code = "stopped"


_ERRORS: Final[Mapping[str, type[AgentError]]] = {
    kind.code: kind for kind in (InvalidEvent, OutboxFull, StoreUnusable, NotEnrolled, BadMessage, Stopped)
}


def record_request(events: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Ask the service to record `events` (see `NewEvent.fields`) in one commit."""
    return {"do": RECORD, "events": events}


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


def live_status(socket: Path, *, timeout: float = 2.0) -> dict[str, Any] | None:
    """Return the service's status; None if it does not run. Raises OSError if it does not answer in time."""
    answer = _ask(socket, {"do": STATUS}, timeout)
    return None if answer is None else _part(answer, "status", dict)


def requeue(socket: Path, seq: int) -> int | None:
    """Have the service requeue a dead letter; return its new seq, None if none runs. Raises its error, OSError."""
    answer = _ask(socket, {"do": REQUEUE, "seq": seq}, ANSWER_S)
    return None if answer is None else _part(answer, "seq", int)


def reload(socket: Path) -> bool:
    """Have the service read the identity again; return whether one runs. Raises OSError if it does not answer."""
    return _ask(socket, {"do": RELOAD}, ANSWER_S) is not None


def sync(socket: Path, on_progress: Callable[[Mapping[str, Any]], None]) -> dict[str, Any] | None:
    """Have the service make a sync run; return its result, None if no service runs.

    Raises the service's error (NotEnrolled, …): Stopped, or OSError, if it ended before the run was over.
    """
    try:
        client = LineClient(socket)
    except NOT_LISTENING:
        return None
    with client:
        client.send({"do": SYNC})
        while True:
            answer = client.receive()
            if "progress" not in answer:
                result: dict[str, Any] = _part(answer, "result", dict)
                return result
            on_progress(answer["progress"])


def _ask(socket: Path, message: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
    try:
        client = LineClient(socket, timeout=timeout)
    except NOT_LISTENING:
        return None
    with client:
        return client.ask(message)


def _part(answer: Mapping[str, Any], name: str, kind: type) -> Any:
    if "error" in answer:
        raise error_from(answer["error"])
    if not isinstance(answer.get(name), kind):
        raise ConnectionResetError(f"not an answer: {str(answer)[:80]}")
    return answer[name]
