"""What `doctor --fix` does: safe repairs, each of which says what it did. None of them touches an event.

The folder is the agent's user's, who may put a link anywhere in it at any time. So root acts as that user in it, but
where only root can: to give a file away, and then to no file that has another name elsewhere.
"""

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pisync_agent.doctor.findings import Finding
from pisync_agent.doctor.folder import folder_facts
from pisync_agent.doctor.service import UNIT
from pisync_agent.errors import AgentError
from pisync_agent.formatting import count
from pisync_agent.outbox import files
from pisync_agent.service import protocol
from pisync_agent.service.access import acting_as_owner

PATIENCE_S: Final = 30.0
"""How long systemd may take to start or restart the service."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """One repair. `act` returns what it did; raises OSError or AgentError where it cannot."""

    about: str
    act: Callable[[Path], str]
    root: bool = True
    """Whether only root can do it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """The outcome of a repair."""

    fix: str
    done: bool
    text: str


def repair(home: Path, finding: Finding) -> Repaired:
    """Make the repair of a finding, which has one."""
    assert finding.fix is not None
    wanted = REPAIRS[finding.fix]
    if wanted.root and os.geteuid() != 0:
        return Repaired(fix=finding.fix, done=False, text=f"{wanted.about}: sudo pisync doctor --fix")
    try:
        with contextlib.nullcontext() if wanted.root else acting_as_owner(home):
            return Repaired(fix=finding.fix, done=True, text=wanted.act(home))
    except (OSError, AgentError) as error:
        return Repaired(fix=finding.fix, done=False, text=f"{wanted.about}: {error}")


def _start(home: Path) -> str:
    _run("systemctl", "enable", "--now", UNIT)
    return "started the service, and had it start with the device"


def _restart(home: Path) -> str:
    _run("systemctl", "restart", UNIT)
    return "restarted the service"


def _set_ntp(home: Path) -> str:
    _run("timedatectl", "set-ntp", "true")
    return "switched the time service on: the clock is set once there is internet"


def _reload(home: Path) -> str:
    protocol.reload(files.socket(home))
    return "had the service read the identity again"


def _own(home: Path) -> str:
    """Give the agent's files in the folder to the folder's owner; a link is not followed."""
    facts = folder_facts(home)
    for entry in facts.foreign:
        _on(entry.path, lambda file: os.fchown(file, facts.uid, facts.gid))
    return f"gave {count(len(facts.foreign), 'file')} to the agent's user"


def _tighten(home: Path) -> str:
    """Take the rights of others from the agent's files, and let the group reach the socket."""
    facts = folder_facts(home)
    for entry in facts.open:
        _on(entry.path, lambda file: os.fchmod(file, files.FILE_MODE))
    if facts.shut:
        home.chmod(files.FOLDER_MODE)
    if files.socket(home).is_socket():
        files.socket(home).chmod(0o660)
    return "corrected the rights of the agent's files"


def _on(path: Path, act: Callable[[int], None]) -> None:
    """Do it to the file that is there, not to what a link in its place names. Closing drops no lock of the service."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise PermissionError(errno.EPERM, "it is not a file of this folder alone", str(path))
        act(file)
    finally:
        os.close(file)


def _delete_leftovers(home: Path) -> str:
    found = folder_facts(home).leftovers
    for entry in found:
        entry.path.unlink(missing_ok=True)
    return f"deleted {count(len(found), 'temporary file')}"


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} did not end in {PATIENCE_S:.0f} s") from error
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {' '.join(done.stderr.split())[:200] or done.returncode}")


REPAIRS: Final[Mapping[str, Repair]] = {
    "start-service": Repair(about="start the service", act=_start),
    "restart-service": Repair(about="restart the service", act=_restart),
    "reload": Repair(about="have the service read the identity again", act=_reload, root=False),
    "ownership": Repair(about="give the agent's files to the agent's user", act=_own),
    "modes": Repair(about="correct the rights of the agent's files", act=_tighten, root=False),
    "leftovers": Repair(about="delete temporary files", act=_delete_leftovers, root=False),
    "ntp": Repair(about="switch the time service on", act=_set_ntp),
}
