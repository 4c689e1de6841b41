"""The watched folder: a file `NAME.ndjson` renamed into it is recorded line by line, and deleted after the last commit.

**Once.** A crash may come between a commit and the deletion, so each line is recorded with an `attempt` computed from
the file and the line's place in it; after a start, or a commit that failed, lines are looked for by it before they are
recorded (see `recorder`). Only the newest 100,000 events are searched, so every NOTED_LINES the place reached is noted.

**Never in the way.** A file that cannot be taken stays, and the others are taken; a refused line goes into
`NAME.ndjson.refused` with its reason, and the others are recorded. When recording fails, the file stays and is tried
again. File names are not logged: they may say who learns.
"""

import asyncio
import dataclasses
import heapq
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from pisync_agent.errors import AgentError, InvalidEvent
from pisync_agent.outbox.app_events import new_event
from pisync_agent.outbox.events import NewEvent
from pisync_agent.service.decoding import Events, decode, unexpected
from pisync_agent.service.inotify import FolderWatch
from pisync_agent.service.spool_file import LINE_BYTES, Line, Position, SpoolFile, Unusable
from pisync_agent.service.spool_folder import FOLDER, is_event_file
from pisync_common.models import Stamp

log = logging.getLogger(__name__)

MODES: Final = (0o3770, 0o1770)
"""The group writes, and only its owner and the agent remove a file. A unit may forbid to set the bit for the group."""
POLL_S: Final = 15.0
"""How soon recording is tried again, and how often the folder is read where the kernel does not watch it."""
PAGE_FILES: Final = 1000
PAGES: Final = 10
NOTE: Final = "spool"
NOTED_LINES: Final = 25_000


@dataclasses.dataclass(kw_only=True)
class Spool:
    """Takes the files of `home/spool`: run `run_forever` on the service's loop.

    `record` returns once events are durable; `note` and `set_note` keep a small value beside the events.
    """

    home: Path
    record: Callable[[Events], Awaitable[list[int | AgentError]]]
    stamp: Callable[[], Stamp]
    note: Callable[[str], str | None]
    set_note: Callable[[str, str], None]
    poll_s: float = POLL_S
    _certain: bool = False
    """Whether no line of a file that is still here can have been recorded."""
    _reached: dict[str, Position] = dataclasses.field(default_factory=dict)
    """How far each file was read that is still here, by its id."""
    _logged: str = ""

    async def run_forever(self) -> None:
        while True:
            try:
                await self._watch()
            except OSError as error:
                self._log(f"the spool folder cannot be used: {error.strerror or error}")
            except Exception as error:
                unexpected(error)
            await asyncio.sleep(self.poll_s)

    async def _watch(self) -> None:
        """Take files as they come. Raises OSError where the folder is gone."""
        make_folder(self.home / FOLDER)
        changed = asyncio.Event()
        with ExitStack() as stack:
            watched = False
            with suppress(OSError):
                stack.enter_context(_watching(self.home / FOLDER, changed))
                watched = True
            while True:
                changed.clear()
                certain = await self.take_all()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if watched and certain else self.poll_s):
                        await changed.wait()

    async def take_all(self) -> bool:
        """Take every file in the order of names; return False if it has to be repeated."""
        faults: Counter[str] = Counter()
        again = False
        folder = os.open(self.home / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in _names(folder):
                await asyncio.sleep(0)
                try:
                    await self._take(folder, name)
                except Unusable as error:
                    faults[str(error)] += 1
                except FileNotFoundError:
                    continue
                except OSError as error:  # of this file alone, such as a lease of the app that wrote it
                    faults[error.strerror or "it cannot be read"] += 1
                    again = True
                except AgentError as error:
                    self._log(f"a spool file is kept and tried again: {error}")
                    return False
        finally:
            os.close(folder)
        self._certain = self._certain or not again
        self._log("; ".join(f"{count} spool files are left: {fault}" for fault, count in sorted(faults.items())))
        return not again

    async def _take(self, folder: int, name: str) -> None:
        refused, noted = 0, 0
        with SpoolFile(folder, name) as file:
            again = not self._certain or file.id in self._reached
            start = self._reached[file.id] = self._start(file.id)
            for group in file.groups(start):
                refused += await self._record(file, group, again=again)
                reached = self._reached[file.id] = group[-1].end
                if reached.line - noted >= NOTED_LINES:
                    noted = reached.line
                    self.set_note(NOTE, f"{file.id} {reached.offset} {reached.line}")
            file.delete()
            del self._reached[file.id]
        if refused:
            log.warning("%d lines of a spool file were refused: see the file beside it that ends in .refused", refused)

    def _start(self, id: str) -> Position:
        """Return where to begin with a file: behind what was recorded for certain."""
        if len(self._reached) > PAGE_FILES:
            self._reached.clear()
            self._certain = False
        if id in self._reached:
            return self._reached[id]
        known, _, numbers = (self.note(NOTE) or "").partition(" ")
        if known != id:
            return Position()
        offset, line = map(int, numbers.split())
        return Position(offset=offset, line=line)

    async def _record(self, file: SpoolFile, group: Sequence[Line], *, again: bool) -> int:
        """Record a group; return how many lines were refused. Raises what failed others: AgentError, OSError."""
        results = await self.record([self._event(file, line, again=again) for line in group])
        refused = []
        for line, result in zip(group, results, strict=True):
            if isinstance(result, InvalidEvent):
                refused.append((line, str(result)))
            elif isinstance(result, AgentError):
                raise result
        if refused:
            file.refuse(refused)
        return len(refused)

    def _event(self, file: SpoolFile, line: Line, *, again: bool) -> NewEvent | InvalidEvent:
        try:
            if len(line.text) > LINE_BYTES:
                raise InvalidEvent(f"longer than {LINE_BYTES:,} bytes, which no valid event is")
            event = new_event(decode(line.text), self.stamp())
        except InvalidEvent as error:
            return error
        except ValueError as error:
            return InvalidEvent(str(error))
        attempt = None if event.id is not None else file.attempt(line)
        return dataclasses.replace(event, attempt=attempt, retried=again)

    def _log(self, text: str) -> None:
        """Log a state once."""
        if text and text != self._logged:
            log.warning("%s", text)
        self._logged = text


def make_folder(folder: Path) -> None:
    """Create the folder if there is none, for the group to write."""
    try:
        folder.mkdir(mode=0o770)
    except FileExistsError:
        return
    for mode in MODES:
        with suppress(PermissionError):
            folder.chmod(mode)
            return


def _names(folder: int) -> Iterator[str]:
    """Yield the names of the files to take, in order, without holding all names of a large folder."""
    last = ""
    for _ in range(PAGES):
        with os.scandir(folder) as entries:
            names = (each.name for each in entries if is_event_file(each.name))
            page = heapq.nsmallest(PAGE_FILES, (name for name in names if name > last))
        yield from page
        if len(page) < PAGE_FILES:
            return
        last = page[-1]


@contextmanager
def _watching(folder: Path, changed: asyncio.Event) -> Iterator[None]:
    """Set `changed` when the kernel reports a change. Raises OSError where it does not watch."""
    loop = asyncio.get_running_loop()

    def notice(watch: FolderWatch) -> None:
        watch.drain()
        changed.set()

    with FolderWatch(folder) as watch:
        loop.add_reader(watch, notice, watch)
        try:
            yield
        finally:
            loop.remove_reader(watch)
