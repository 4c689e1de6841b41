"""`serve --workers N`: processes that share one listening socket, and a parent that keeps them alive.

The parent binds, starts each worker as the same command with the socket handed down, starts one again that ended by
itself (after a pause that grows while it keeps ending), and on SIGTERM passes it on and waits. A worker whose parent is
gone stops by itself: it reads its standard input, which then ends. (uvicorn's own supervisor runs uvicorn's
server and not ours, which drains, and leaves its workers behind when it is killed.)
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pisync_receiver.logs import fields

log = logging.getLogger(__name__)

SOCKET: Final = "PISYNC_WORKER_SOCKET"
"""The variable that makes `serve` a worker: the number of the file descriptor to serve on."""
METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The folder in which workers keep their counts, for whichever of them is asked."""

_PAUSES_S: Final = (0.1, 1.0, 5.0, 30.0)
"""Before a worker is started again: longer each time it ends within a minute of its start."""
_SOUND_S: Final = 60.0
_TICK_S: Final = 0.05


def inherited_socket(environ: Mapping[str, str]) -> socket.socket | None:
    """The socket that a parent handed to this process; None where this is no worker. From now on this process ends
    when its parent does."""
    if (number := environ.get(SOCKET)) is None:
        return None
    threading.Thread(target=_end_with_parent, name="pisync-parent", daemon=True).start()
    return socket.socket(fileno=int(number))


@dataclass
class _Worker:
    """One place among the workers, and the process that fills it."""

    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    ended_early: int = 0
    again_at: float = 0.0


class Workers:
    """Use once: `run` returns when a signal came and every worker has ended."""

    def __init__(
        self,
        listener: socket.socket,
        count: int,
        command: Sequence[str],
        *,
        stopping: list[int],
        stop_s: float,
        started: Callable[[], None],
        ended: Callable[[Path, int], None],
    ) -> None:
        """`started` is called once, when every worker accepts connections; `ended` with the metrics' folder
        and the process id of each that ended. `stop_s` is how long they may take to stop; then they are killed."""
        self._listener = listener
        self._command = list(command)
        self._stopping = stopping
        self._stop_s = stop_s
        self._tell = started
        self._ended = ended
        self._places = [_Worker() for _ in range(count)]
        self._ready: set[int] = set()

    def run(self) -> None:
        """Keep them alive until a signal is noted in `stopping`."""
        told = False
        with tempfile.TemporaryDirectory(prefix="pisync-metrics-") as metrics:
            while not self._stopping:
                for place in self._places:
                    self._look_after(place, Path(metrics))
                if not told and len(self._ready) == len(self._places):
                    told = True
                    self._tell()
                time.sleep(_TICK_S)
            self._stop()

    def _look_after(self, place: _Worker, metrics: Path) -> None:
        now = time.monotonic()
        process = place.process
        if process is None:
            if now >= place.again_at:
                self._start(place, metrics, now)
        elif process.poll() is not None:
            early = now - place.started < _SOUND_S
            place.ended_early = place.ended_early + 1 if early else 0
            pause = _PAUSES_S[min(place.ended_early, len(_PAUSES_S) - 1)]
            place.process, place.again_at = None, now + pause
            self._ready.discard(process.pid)
            self._ended(metrics, process.pid)
            detail = fields(worker=process.pid, exit_code=process.returncode)
            log.error("a worker ended; it is started again in %.1f s", pause, extra=detail)

    def _start(self, place: _Worker, metrics: Path, now: float) -> None:
        number = self._listener.fileno()
        place.started = now
        place.process = subprocess.Popen(
            self._command,
            env=os.environ | {SOCKET: str(number), METRICS: str(metrics)},
            pass_fds=(number,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._hear, args=(place.process,), daemon=True).start()

    def _hear(self, process: subprocess.Popen[str]) -> None:
        """The first line that a worker prints says that it accepts connections."""
        assert process.stdout is not None
        with process.stdout:
            for _ in process.stdout:
                self._ready.add(process.pid)

    def _stop(self) -> None:
        running = [place.process for place in self._places if place.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + self._stop_s
        for process in running:
            try:
                process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                log.error("a worker did not stop in time and was killed", extra=fields(worker=process.pid))
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
