"""The agent's folder: who owns what in it, who may read it, what was left; and outboxes that nothing delivers."""

import os
import pwd
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pisync_agent.config as config
from pisync_agent.doctor.findings import Finding, bad, ok, skipped, warn
from pisync_agent.formatting import count
from pisync_agent.outbox import files
from pisync_agent.service.spool_folder import SpoolCounts

ENTRIES: Final = 5000
"""The most entries of the folder that are looked at."""
SHOWN: Final = 5
LEFT_S: Final = 3600.0
"""A temporary file that is older was left by a process that is gone."""
USERS: Final = 200
"""The most users whose folders are looked at."""

_SECRET: Final = re.compile(r"outbox([.-].+)?|identity\.json")
_LEFTOVER: Final = re.compile(r"\.(identity\.json|proposed-device-id)\.([0-9a-f]{8}|trial)|outbox\.probe")
"""What the agent writes and renames or deletes at once; none of them ever holds an event."""
_LAST_SYSTEM_USER: Final = 999


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of the folder."""

    path: Path
    uid: int
    mode: int
    age_s: float

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderFacts:
    """The folder itself, and the files in it; links and folders in it are none of the agent's business."""

    path: Path
    uid: int
    gid: int
    mode: int
    entries: tuple[Entry, ...]

    @property
    def foreign(self) -> list[Entry]:
        """The agent's files that belong to another user: the service cannot write them."""
        return [each for each in self.entries if each.uid != self.uid and _SECRET.fullmatch(each.name)]

    @property
    def open(self) -> list[Entry]:
        """The agent's files that others may read or write."""
        return [each for each in self.entries if each.mode & 0o077 and _SECRET.fullmatch(each.name)]

    @property
    def leftovers(self) -> list[Entry]:
        return [each for each in self.entries if each.age_s > LEFT_S and _LEFTOVER.fullmatch(each.name)]

    @property
    def shut(self) -> bool:
        """Whether the group cannot reach the socket in it."""
        return not self.mode & stat.S_IXGRP


def folder_facts(home: Path) -> FolderFacts:
    """Return the facts of the agent's folder. Raises OSError."""
    found = home.stat()
    return FolderFacts(
        path=home,
        uid=found.st_uid,
        gid=found.st_gid,
        mode=stat.S_IMODE(found.st_mode),
        entries=tuple(_entries(home)),
    )


def _entries(home: Path) -> Iterator[Entry]:
    now = time.time()
    with os.scandir(home) as entries:
        for _, entry in zip(range(ENTRIES), entries, strict=False):
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield Entry(
                        path=Path(entry.path),
                        uid=found.st_uid,
                        mode=stat.S_IMODE(found.st_mode),
                        age_s=now - found.st_mtime,
                    )


def check_folder(home: Path, facts: FolderFacts | OSError, *, system: bool) -> Finding:
    """Judge who owns the folder and its files, and who may use them."""
    if isinstance(facts, PermissionError):
        return skipped("folder", f"this user may not look into {home}: sudo pisync doctor")
    if isinstance(facts, FileNotFoundError | NotADirectoryError):
        return warn("folder", f"There is no folder {home} yet: nothing was ever recorded here.", advice=_START)
    if isinstance(facts, OSError):
        return bad("folder", f"The folder {home} cannot be read: {facts.strerror}.", advice=_CHECK_DISK)
    owner = user_name(facts.uid)
    about = f"{home} belongs to {owner}, rights {facts.mode:04o}"
    if found := facts.foreign:
        return bad(
            "folder",
            f"{count(len(found), 'file')} of the agent in {home} belong to another user than {owner}, so the service "
            "cannot use them. This happens when a program was started as another user.",
            *_names(found),
            advice="sudo pisync doctor --fix",
            fix="ownership",
        )
    if facts.shut and system:
        return bad(
            "folder",
            f"Apps of other users cannot reach the service: {home} does not let its group in.",
            about,
            advice=f"sudo chmod 0750 {home}",
            fix="modes",
        )
    if found := facts.open:
        return warn(
            "folder",
            f"{count(len(found), 'file')} of the agent in {home} can be read by other users; learners' work and the "
            "device's token are in them.",
            *_names(found),
            advice="sudo pisync doctor --fix",
            fix="modes",
        )
    if found := facts.leftovers:
        return warn(
            "folder",
            f"{count(len(found), 'temporary file')} of a process that was interrupted: harmless, and no longer needed.",
            *_names(found),
            advice="pisync doctor --fix deletes them; no event is in them.",
            fix="leftovers",
        )
    return ok("folder", about)


_START: Final = "Start the service (sudo systemctl start pisync-agent), or record an event."
_CHECK_DISK: Final = "Restart the device. If it happens again, the card may be failing: look at the line `disk`."


def stray_outboxes(home: Path) -> list[Path]:
    """Return private outboxes that nothing delivers: this user's, and for root those of every person."""
    if home != config.SYSTEM_HOME:
        return []
    users = _people() if os.geteuid() == 0 else [pwd.getpwuid(os.geteuid())]
    folders = [Path(user.pw_dir) / ".local/share/pisync" for user in users[:USERS]]
    return [each for each in dict.fromkeys(folders) if _holds_outbox(each, home)]


def _people() -> list[pwd.struct_passwd]:
    return [user for user in pwd.getpwall() if user.pw_uid == 0 or user.pw_uid > _LAST_SYSTEM_USER]


def _holds_outbox(folder: Path, home: Path) -> bool:
    try:
        return folder.resolve() != home.resolve() and files.database(folder).stat().st_size > 0
    except (OSError, RuntimeError):
        return False


def check_strays(strays: Iterable[Path]) -> Finding:
    """Judge outboxes beside the service's."""
    found = list(strays)
    if not found:
        return ok("strays", "no events lie in another folder than the service's")
    return warn(
        "strays",
        f"Events were recorded in {count(len(found), 'private folder')} that the service does not deliver. They are "
        "kept there.",
        *(str(each) for each in found[:SHOWN]),
        advice=f"Bring them into the service's outbox: sudo pisync adopt {found[0]}",
    )


def check_spool(spool: Path, counts: SpoolCounts | None) -> Finding:
    """Judge the folder in which apps leave files of events."""
    if counts is None:
        return skipped("spool", f"this user may not look into {spool}: sudo pisync doctor")
    if counts.left:
        return bad(
            "spool",
            f"{count(counts.left, 'file')} of events in {spool} {'is' if counts.left == 1 else 'are'} not recorded. "
            "They are kept there.",
            advice="If the service runs, it says why: pisync logs   If it may not read a file, the user of the app "
            "that wrote it does: chmod g+r FILE",
        )
    if counts.refused:
        return warn(
            "spool",
            f"Lines of apps were refused; they are kept in {count(counts.refused, 'file')} in {spool}.",
            advice="The reason stands beside each line. Have the app corrected, then delete the files: "
            f"{spool}/*.refused",
        )
    return ok("spool", "every file of events was taken")


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"'#{uid}'"


def _names(entries: Iterable[Entry]) -> tuple[str, ...]:
    found = list(entries)
    shown = tuple(f"{each.name}: of {user_name(each.uid)}, rights {each.mode:04o}" for each in found[:SHOWN])
    return (*shown, f"and {len(found) - SHOWN} more") if len(found) > SHOWN else shown
