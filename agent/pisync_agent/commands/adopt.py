"""`pisync adopt`: bring another outbox's events into the service's, each once.

Events go the way of every recorded event: through the service's socket, or directly where no service runs. What was
taken is noted in the same commit, so an interrupted adoption is repeated by the same command.
"""

import argparse
import fcntl
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.commands.command import OUTBOX, Command, add_json
from pisync_agent.commands.sync import Meter
from pisync_agent.commands.usage import DONE, PENDING, WrongUsage
from pisync_agent.errors import AgentError, InvalidEvent, NotEnrolled, StoreUnusable
from pisync_agent.formatting import count
from pisync_agent.outbox import files
from pisync_agent.outbox.adopted import ADOPTED_BEFORE
from pisync_agent.outbox.adoption import Source
from pisync_agent.outbox.events import NewEvent
from pisync_agent.recorder import Recorder
from pisync_agent.service import protocol
from pisync_agent.service.access import acting_as_owner
from pisync_agent.service.lock import holder_of
from pisync_common import __version__
from pisync_common.errors import LockHeld

GROUP: Final = 1000
"""Events handed to the recorder at once, which divides them into messages."""
TIMEOUT_S: Final = 30.0
NAMED: Final = 100
"""How many events that were not adopted are named, and how many reasons."""

_RENAMED: Final = re.compile(r"-adopted(-[0-9]+)?$")


@dataclass(kw_only=True)
class Outcome:
    """What an adoption did, as `--json` prints it."""

    source: str
    stream: str
    adopted: int = 0
    adopted_before: int = 0
    delivered: int = 0
    """Events that the source had delivered; they are adopted with --all only."""
    refused: dict[str, int] = field(default_factory=dict)
    """Events that could not be adopted, by the reason."""
    refused_seqs: list[int] = field(default_factory=list)
    dead_letters: dict[str, int] = field(default_factory=dict)
    """Dead letters that stay in the source, by their code."""
    missing: int = 0
    """Undelivered events that cannot be read."""
    whole: bool = True
    moved_to: str | None = None


def adopt(arguments: argparse.Namespace) -> int:
    # Not `settings_of`: the source may be another user's, and only root may read it.
    settings = config.settings_from(arguments)
    home, given = settings[config.HOME], Path(arguments.source).absolute()
    path = _database(given, home)
    folder = path.parent if path.parent == given.resolve() else None
    with files.errors(path):
        identity = files.identity(path.parent)
    _check_service(home)
    with _unused(path), files.errors(path), Source(path, _other_device(path.parent, home)) as source:
        outcome = Outcome(
            source=str(path),
            stream=source.stream,
            delivered=source.delivered,
            dead_letters=source.dead_letters(),
            whole=source.whole,
        )
        with acting_as_owner(home), Recorder(home, limits=config.limits(settings)) as recorder:
            _transfer(source, recorder, outcome, everything=arguments.all)
        outcome.missing = source.missing
        if folder is not None:
            outcome.moved_to = set_aside(folder, identity)
    print(json.dumps(asdict(outcome)) if arguments.json else summary(outcome))
    lost = outcome.missing or not outcome.whole
    return PENDING if outcome.refused or outcome.dead_letters or lost else DONE


def summary(outcome: Outcome) -> str:
    """Return it for people, one line a subject."""
    lines = [f"adopted {count(outcome.adopted, 'event')} of {outcome.source}"]
    if outcome.adopted_before:
        lines.append(f"{count(outcome.adopted_before, 'event')} had been adopted before")
    for reason, number in outcome.refused.items():
        lines.append(f"{count(number, 'event')} could not be adopted: {reason}")
    if outcome.refused_seqs:
        lines.append(f"  their numbers there: {', '.join(map(str, outcome.refused_seqs))}")
    if outcome.dead_letters:
        codes = ", ".join(f"{number:,} {code}" for code, number in outcome.dead_letters.items())
        lines.append(f"its rejected events stay there ({codes}): pisync queue dead --home {_folder(outcome)}")
    if outcome.missing:
        lines.append(f"its file is damaged: {count(outcome.missing, 'event')} cannot be read; keep the file")
    if not outcome.whole:
        lines.append("its file is damaged: events recorded last may be missing; keep the file")
    if outcome.moved_to:
        lines.append(f"it is kept as {outcome.moved_to}")
    return "\n".join(lines)


def _folder(outcome: Outcome) -> str:
    return outcome.moved_to or str(Path(outcome.source).parent)


# The source


def _database(given: Path, home: Path) -> Path:
    """Return the database file that FOLDER names. Raises WrongUsage, StoreUnusable."""
    with files.errors(given):
        path = files.database(given) if given.is_dir() else given
        if not path.is_file() and not files.companion(path, "-wal").is_file():
            raise WrongUsage(f"there is no outbox in {given}: name a folder with outbox.db, or such a file")
        own = files.database(home)
        if path.exists() and own.exists() and path.samefile(own):
            raise WrongUsage(f"{given} is the outbox of this device's service already; name another folder")
    return path.resolve()


def _other_device(folder: Path, home: Path) -> str | None:
    """Return the id under which the source was enrolled; None if that is this device's own, or cannot be read.

    With it the receiver recognises events whose receipt the source never read.
    """
    there, here = (_device_id(each) for each in (folder, home))
    return there if there != here else None


def _device_id(folder: Path) -> str | None:
    try:
        known = identities.load(folder)
    except NotEnrolled:
        return None
    return None if known is None else known.device_id


def _check_service(home: Path) -> None:
    """Raise StoreUnusable if the service runs another version: an older one would record the events twice."""
    live = protocol.live_status(files.socket(home))
    if live is not None and live.get("version") != __version__:
        raise StoreUnusable(
            f"the service in {home} is still version {live.get('version')}, this command is {__version__}: nothing was "
            "adopted. Restart it (sudo systemctl restart pisync-agent), then adopt again."
        )


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Keep other writers from the source meanwhile. Raises LockHeld if one is at work."""
    lock = files.lock(path.parent)
    if path.name != files.database(path.parent).name or not lock.exists():
        yield
        return
    with files.errors(lock):
        fd = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = holder_of(lock) or "another process"
            raise LockHeld(f"{path} is in use by {holder}; nothing was adopted. Stop it, then adopt again") from error
        yield
    finally:
        os.close(fd)


def set_aside(folder: Path, adopted: tuple[int, int]) -> str | None:
    """Rename the folder that was adopted, so that no agent delivers from it again; return its new name.

    None if that is refused: a mount point, a read-only card and another user's folder stay where they are, and a folder
    that was renamed before. Its owner may put a link in any place of its path meanwhile, so it is renamed with the
    rights of that owner, in the folder that holds it now.
    """
    if _RENAMED.search(folder.name):
        return None
    try:
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with acting_as_owner(parent):
            found = os.stat(folder.name, dir_fd=parent, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != adopted:
                return None
            name = _free_name(f"{folder.name}-adopted", os.listdir(parent))  # noqa: PTH208 - of a descriptor
            os.rename(folder.name, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        return None
    finally:
        os.close(parent)
    return str(folder.with_name(name))


def _free_name(name: str, taken: Sequence[str]) -> str:
    numbered = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
    return next(each for each in numbered if each not in taken)


# The transfer


def _transfer(source: Source, recorder: Recorder, outcome: Outcome, *, everything: bool) -> None:
    """Record the source's events. Raises the error that ended it; what was adopted by then is noted."""
    meter, total, done = Meter(sys.stderr), source.count(everything=everything), 0
    refused: Counter[str] = Counter()
    found = source.events(everything=everything)
    try:
        while group := list(islice(found, GROUP)):
            for (seq, _), result in zip(group, _record(recorder, group), strict=True):
                if isinstance(result, AgentError):
                    _refuse(result, seq, refused, outcome)
                elif result == ADOPTED_BEFORE:
                    outcome.adopted_before += 1
                else:
                    outcome.adopted += 1
            done += len(group)
            meter.show(_progress(done, total))
    except KeyboardInterrupt:
        meter.end()
        print(f"pisync: stopped: {_so_far(outcome, total)}", file=sys.stderr)
        raise
    except AgentError as error:
        raise type(error)(f"{_so_far(outcome, total)}: {error}") from error
    finally:
        meter.end()
    outcome.refused = dict(refused)


def _record(recorder: Recorder, group: Sequence[tuple[int, NewEvent | InvalidEvent]]) -> list[int | AgentError]:
    events = [event for _, event in group if isinstance(event, NewEvent)]
    results = iter(recorder.record_many(events, timeout=TIMEOUT_S) if events else [])
    return [next(results) if isinstance(event, NewEvent) else event for _, event in group]


def _refuse(error: AgentError, seq: int, refused: "Counter[str]", outcome: Outcome) -> None:
    """Count an event that can never be adopted; raise an error that may pass, such as a full outbox."""
    if not isinstance(error, InvalidEvent):
        raise error
    reason = str(error)
    refused[reason if reason in refused or len(refused) < NAMED else "other reasons"] += 1
    if len(outcome.refused_seqs) < NAMED:
        outcome.refused_seqs.append(seq)


def _so_far(outcome: Outcome, total: int) -> str:
    taken = outcome.adopted + outcome.adopted_before
    return (
        f"{taken:,} of {count(total, 'event')} are adopted, and nothing of the source was changed. Adopt it again to "
        "go on: no event is stored twice"
    )


def _progress(done: int, total: int) -> Mapping[str, Any]:
    return {"step": "adopting", "events": done, "of": max(done, total)}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", help="a folder with an outbox, or an outbox file")
    parser.add_argument("--all", action="store_true", help="also delivered events that are still kept there")
    add_json(parser)


ADOPT: Final = Command(
    run=adopt,
    example="adopt /home/pi/.local/share/pisync",
    arguments=_arguments,
    settings=OUTBOX,
    more=(
        "Takes what was not delivered there, each event once with its own times, also from a damaged file or a\n"
        "card that is mounted read-only. Repeat it after an interruption. The source is read only; a folder that\n"
        "can be renamed gets the ending -adopted."
    ),
)
