"""The clients that wait for a sync run: they get its progress, and its result."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from pisync_agent.errors import AgentError
from pisync_agent.service import protocol
from pisync_agent.service.scheduler import Finished
from pisync_agent.service.server import Request
from pisync_agent.sync.progress import Progress

ALIVE_S: Final = 3.0
"""How often a client gets progress, well within its patience (`protocol.ANSWER_S`)."""
STARTING: Final = Progress(step="starting", events=0, of=0, bytes=0, speed_mbit=0.0, seconds_left=None)


@dataclass(kw_only=True)
class Waiters:
    """Requests for a sync run, each with its number. For the event loop's thread."""

    _requests: list[tuple[Request, int]] = field(default_factory=list)
    _progress: Progress = STARTING
    _repeats: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request, number: int) -> None:
        """Answer a request when a run is over that covers its number."""
        self._requests.append((request, number))
        if self._repeats is None:
            self._repeat_later()

    def show(self, progress: Progress) -> None:
        """Show how far the present run is."""
        self._progress = progress
        for request, _ in self._requests:
            request.show({"progress": progress.fields()})

    def finish(self, finished: Finished) -> None:
        """Answer the requests that a run covers."""
        self._progress = STARTING
        if finished.result is not None:
            answer: dict[str, object] = {"result": finished.result.fields()}
        else:
            answer = protocol.error_answer(finished.error or AgentError("the sync run ended without a result"))
        waiting, self._requests = self._requests, []
        for request, number in waiting:
            if number <= finished.covers:
                request.answer(answer)
            else:
                self._requests.append((request, number))

    def answer_all(self, answer: dict[str, object]) -> None:
        """Answer every request, as where no run will be made."""
        waiting, self._requests = self._requests, []
        for request, _ in waiting:
            request.answer(answer)

    def _repeat_later(self) -> None:
        self._repeats = asyncio.get_running_loop().call_later(ALIVE_S, self._repeat)

    def _repeat(self) -> None:
        """Show that the service lives, during a request to the receiver that takes long."""
        self._repeats = None
        if self._requests:
            self.show(self._progress)
            self._repeat_later()
