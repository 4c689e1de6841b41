"""Who may reach what in the agent's folder: advice for a user who may not, and root in the rights of its owner."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pisync_agent.errors import StoreUnusable

_AGENT: Final = "pisync"
"""The agent's user and group, where the folder itself may not be seen."""


def reach_hint(home: Path) -> str:
    """Say how to reach the service's socket."""
    user, group = _owners(home)
    if _is_member(home):
        return f"Run it as the agent's user: sudo -u {user} …"
    return f"Run it as the agent's user (sudo -u {user} …), or join its group {group} and sign in again"


@contextmanager
def acting_as_owner(home: Path | int) -> Iterator[None]:
    """Act as the owner of `home`, or of an open folder, inside the block if root calls, and as root again after it."""
    try:
        owner = os.stat(home)  # noqa: PTH116 - of a descriptor, too
    except OSError:
        owner = None
    if os.geteuid() != 0 or owner is None or owner.st_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


@contextmanager
def needs_service(home: Path) -> Iterator[None]:
    """Tell a user whom the outbox does not belong to, and for whom no service listens. Raises StoreUnusable."""
    try:
        yield
    except PermissionError as error:
        if not _is_anothers(home):
            raise
        raise StoreUnusable(
            f"the service of {home} is not running, and without it only its user {_owners(home)[0]} may record: "
            "nothing was recorded. Start it: sudo systemctl start pisync-agent"
        ) from error


def read_hint(home: Path) -> str:
    """Say how to read the outbox, to a user who may not and whom no service answers."""
    group = _owners(home)[1]
    if _is_member(home):
        other = "or start the service, which shows it to its group: sudo systemctl start pisync-agent"
    else:
        other = f"or join its group {group} and sign in again: the running service shows it to the group"
    return f"{owner_hint(home)}; {other}"


def owner_hint(home: Path) -> str:
    """Say that only the agent's user may read the files."""
    return f"only the agent's user may read the files in {home}: sudo -u {_owners(home)[0]} pisync …"


def _is_member(home: Path) -> bool:
    try:
        return home.stat().st_gid in (os.getegid(), *os.getgroups())
    except OSError:
        return False


def _is_anothers(home: Path) -> bool:
    try:
        return home.stat().st_uid != os.geteuid()
    except OSError:
        return False


def _owners(home: Path) -> tuple[str, str]:
    """Return the names of the folder's user and group, as `sudo -u` takes them."""
    import grp  # only for these texts
    import pwd

    try:
        found = home.stat()
    except OSError:
        return _AGENT, _AGENT
    try:
        user = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        user = f"'#{found.st_uid}'"
    try:
        return user, grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        return user, f"#{found.st_gid}"
