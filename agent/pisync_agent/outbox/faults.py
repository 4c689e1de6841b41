"""What a fault of the outbox's files means, in words: one place for OSError and for SQLite's errors.

SQLite says only that it cannot open, read or write a file; why, the file system is asked here. The database and its
companions are never opened for that: closing a second descriptor would drop the locks SQLite holds in this process.
Only damage is called damage, because only damage is salvaged.
"""

import errno
import os
import sqlite3
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final

from pisync_agent.errors import AgentError, OutboxFull, StoreUnusable
from pisync_common.sqlite import ERRORS


class Fault(StrEnum):
    """What is wrong with the outbox's files: stable names, for programs."""

    FULL = "full"
    READ_ONLY = "read_only"
    DISK_FAILED = "disk_failed"
    DISK_GONE = "disk_gone"
    NOT_PERMITTED = "not_permitted"
    DAMAGED = "damaged"
    """The service salvages it when it starts."""
    LOG_MISSING = "log_missing"
    """Damage, too: the newest events were in the log."""
    NEWER_VERSION = "newer_version"
    FOREIGN = "foreign"
    """Another program's database."""
    MOVED = "moved"
    BUSY = "busy"
    OTHER = "other"


_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED_NAMES: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_TOOBIG", "SQLITE_IOERR_SHORT_READ")
_DAMAGED_TEXTS: Final = (
    "malformed",
    "not a database",
    "corrupt",
    "too big",
    "could not decode to utf-8",
    "no such table",
    "no such column",
    "no such index",
    "unsupported file format",
)
_BUSY_NAMES: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_UNCLEAR_NAMES: Final = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")
"""Errors of SQLite that the file system can explain."""

_PROBE_BYTES: Final = 4096
_CHECK: Final = "Check the disk and who may use it, then try again."
_CARD: Final = "`dmesg` says why. Copy {folder}, restart the device; if it fails again, replace the card."
_WORDS: Final = {
    errno.EROFS: ("its file system is read-only, as the kernel makes it when a card fails", _CARD),
    errno.EIO: ("the disk failed", "The card may be failing: " + _CARD),
    errno.ENXIO: ("the disk is gone", "Put it back, then start the device again."),
    errno.ENODEV: ("the disk is gone", "Put it back, then start the device again."),
    errno.EISDIR: ("it is a directory, where a file should be", "Move it away, then try again."),
    errno.ENOTDIR: ("a part of its path is a file, where a directory should be", "Move it away, or name another home."),
    errno.ENOENT: ("it does not exist, or is a link that leads nowhere", "Mount its disk, or check the path."),
    errno.EEXIST: ("a file, or a link that leads nowhere, is in its place", "Mount its disk, or name another home."),
    errno.ELOOP: ("a link in its path leads back to itself", "Correct the link, or name another home."),
    errno.EMFILE: ("too many files are open", "Close some programs, then try again."),
    errno.ENFILE: ("too many files are open", "Close some programs, then try again."),
    errno.ENOMEM: ("there is no memory left", "Close some programs, then try again."),
}
"""By errno: what is wrong, and what to do."""
_FAULTS: Final = {
    errno.EROFS: Fault.READ_ONLY,
    errno.EIO: Fault.DISK_FAILED,
    errno.ENXIO: Fault.DISK_GONE,
    errno.ENODEV: Fault.DISK_GONE,
    errno.ENOENT: Fault.DISK_GONE,
    errno.EACCES: Fault.NOT_PERMITTED,
    errno.EPERM: Fault.NOT_PERMITTED,
}


def is_full(error: BaseException) -> bool:
    """Return whether there was no room: at the file's own cap, or on the disk."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return isinstance(error, sqlite3.Error) and (
        name.startswith("SQLITE_FULL") or name == "SQLITE_IOERR_SHMSIZE" or "disk is full" in str(error).lower()
    )


def is_full_for(error: BaseException, folder: Path) -> bool:
    """Return whether there was no room for a file of `folder`, also where SQLite cannot tell (a quota)."""
    if is_full(error):
        return True
    name = getattr(error, "sqlite_errorname", "") or ""
    return name == "SQLITE_IOERR_WRITE" and refusal_to_write(folder) in _FULL


def is_damage(error: BaseException) -> bool:
    """Return whether the file itself is broken, rather than a disk or a permission that fails for now."""
    if not isinstance(error, ERRORS):
        return False
    if isinstance(error, UnicodeDecodeError | sqlite3.IntegrityError | sqlite3.DataError):
        # Every key is looked up before it is inserted and every size is known: an intact file cannot cause these.
        return True
    name = getattr(error, "sqlite_errorname", "") or ""
    text = str(error).lower()
    return name.startswith(_DAMAGED_NAMES) or any(part in text for part in _DAMAGED_TEXTS)


def explained(path: Path, error: Exception, *, reading: bool = False) -> AgentError:
    """Return what `error` at the file `path` means: what is wrong, what was kept, what to do.

    `reading` says that nothing was to be written. OutboxFull where there is no room, StoreUnusable otherwise.
    """
    path, number = _cause(path, error, writing=not reading)
    told = _explained(path, error, number, reading=reading)
    told.fault = _fault(error, number)
    return told


def _fault(error: Exception, number: int | None) -> Fault:
    name = getattr(error, "sqlite_errorname", "") or ""
    if number in _FULL or is_full(error):
        return Fault.FULL
    if number is not None:
        return _FAULTS.get(number, Fault.OTHER)
    if is_damage(error):
        return Fault.DAMAGED
    if name == "SQLITE_READONLY_DBMOVED":
        return Fault.MOVED
    return Fault.BUSY if name.startswith(_BUSY_NAMES) else Fault.OTHER


def _explained(path: Path, error: Exception, number: int | None, *, reading: bool) -> AgentError:
    if number in _FULL or is_full(error):
        return _full(path, number, reading=reading)
    what, advice = _words(path, error, number, reading=reading)
    done = "cannot be read" if reading else "cannot be used"
    damaged = number is None and is_damage(error)  # what that has cost, only the salvage can tell
    kept = "nothing was changed" if damaged else "nothing is lost"
    kept = kept if reading else f"nothing was recorded, {kept}"
    return StoreUnusable(f"{path} {done}: {what} ({_short(error)}): {kept}. {advice}")


def refusal_to_write(folder: Path) -> int | None:
    """Return the errno with which `folder` refuses a small new file; None if it takes one."""
    probe = folder / "outbox.probe"
    try:
        probe.unlink(missing_ok=True)  # left by a process that was killed
        # Root may ask for it in a folder of the agent's user: never through a link.
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, bytes(_PROBE_BYTES))
            os.fsync(fd)
        finally:
            try:
                os.close(fd)
            finally:
                probe.unlink(missing_ok=True)
    except FileExistsError:  # another process has just made the same probe
        return None
    except OSError as error:
        return error.errno
    return None


def _short(error: Exception) -> str:
    """Return the error's own words without the path, which stands before them."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _cause(path: Path, error: Exception, *, writing: bool) -> tuple[Path, int | None]:
    """Return the file that is at fault, and the error number; None where there is none."""
    if isinstance(error, OSError):
        named = error.filename
        return Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path, error.errno
    name = getattr(error, "sqlite_errorname", "") or ""
    if is_damage(error) or not name.startswith(_UNCLEAR_NAMES) or name == "SQLITE_READONLY_DBMOVED":
        return path, None
    found = _obstacle(path, writing=writing)
    if found is None and (writing or name.startswith("SQLITE_CANTOPEN")):
        # To read a database that is not in use, SQLite too makes a file beside it.
        refused = refusal_to_write(path.parent)
        found = None if refused is None else (path, refused)
    return found or (path, errno.EIO if name.startswith("SQLITE_IOERR") else None)


def _obstacle(path: Path, *, writing: bool) -> tuple[Path, int] | None:
    """Return what using `path` and its companions meets, without opening them: which file, and the error number."""
    for ending in ("", "-wal", "-shm"):
        file = path.with_name(path.name + ending)
        try:
            if stat.S_ISDIR(file.stat().st_mode):
                return file, errno.EISDIR
        except FileNotFoundError:
            if ending or writing:
                continue
            return file, errno.ENOENT
        except OSError as error:
            return file, error.errno or errno.EIO
        if not os.access(file, os.R_OK | (os.W_OK if writing else 0), effective_ids=True):
            return file, errno.EROFS if writing and _mounted_read_only(file) else errno.EACCES
    return None


def _mounted_read_only(file: Path) -> bool:
    return bool(os.statvfs(file).f_flag & os.ST_RDONLY)


def _words(path: Path, error: Exception, number: int | None, *, reading: bool) -> tuple[str, str]:
    """Return what is wrong, and what to do."""
    if number in (errno.EACCES, errno.EPERM):
        return _not_permitted(path, reading=reading)
    if number is not None:
        what, advice = _WORDS.get(number, (os.strerror(number), _CHECK))
        return what, advice.format(folder=path.parent)
    if is_damage(error):
        return (
            "the file is damaged",
            "The service (`pisync run`) transfers what is readable to a new file when it starts.",
        )
    name = getattr(error, "sqlite_errorname", "") or ""
    if name == "SQLITE_READONLY_DBMOVED":
        return "the file was moved or deleted while it was open", "Put it back, or start the service again."
    if name.startswith(_BUSY_NAMES):
        return "another process has it locked", "Try again; if it stays so, stop that process."
    return "SQLite failed", _CHECK


def _not_permitted(path: Path, *, reading: bool) -> tuple[str, str]:
    """Return the words for a file that is not this user's, or that permits nothing to its own user."""
    blocking = next((each for each in (path, *path.parents) if _is_visible(each)), path)
    try:
        uid = blocking.stat().st_uid
    except OSError:
        uid = os.geteuid()
    what = f"this user may not {'read' if reading else 'use'} it"
    if uid == os.geteuid() or os.geteuid() == 0:
        return what, f"Check the rights of {path} and of its folder (ls -la, lsattr)."
    owner = _user_name(uid)
    advice = f"Run this as that user (sudo -u {owner} pisync …), or start the service: its socket serves others too."
    return f"{what}; it belongs to {owner}", advice


def _is_visible(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _user_name(uid: int) -> str:
    import pwd  # only for this text

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"'#{uid}'"


def _full(path: Path, number: int | None, *, reading: bool) -> OutboxFull:
    what, advice = _no_room(path.parent, number)
    kept = "everything recorded before is kept"
    return OutboxFull(f"{what}: {kept if reading else 'nothing was recorded, and ' + kept}. {advice}")


def _no_room(folder: Path, number: int | None) -> tuple[str, str]:
    """Return what is used up, and what to do."""
    if number == errno.EDQUOT:
        return f"this user's quota on the disk of {folder} is used up", "Delete files, or have it raised."
    if _inodes_are_used_up(folder):
        return f"the disk of {folder} has room, but no inode for another file", "Delete files, then try again."
    return f"the disk of {folder} has no room for the outbox", "Free some space, then try again."


def _inodes_are_used_up(folder: Path) -> bool:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0
