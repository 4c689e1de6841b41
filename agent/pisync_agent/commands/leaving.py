"""`pisync unenroll`, `reset` and `seal`: giving up the identity, everything, or what a copied card must not share."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.commands.command import Command
from pisync_agent.commands.enroll import reload_service
from pisync_agent.commands.usage import DONE, StillPending, WrongUsage, settings_of
from pisync_agent.enrollment.machine import read_machine
from pisync_agent.enrollment.state import PENDING, note_state
from pisync_agent.errors import NotEnrolled, StoreUnusable
from pisync_agent.formatting import count
from pisync_agent.outbox import files
from pisync_agent.outbox.models import OutboxState
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service import spool_folder
from pisync_agent.service.access import acting_as_owner
from pisync_agent.service.lock import writer_lock
from pisync_agent.service.spool_folder import SpoolCounts
from pisync_common.errors import LockHeld

MACHINE_ID: Final = Path("/etc/machine-id")
_STOP: Final = "sudo systemctl stop pisync-agent.socket pisync-agent"

_OWN: Final = re.compile(
    r"outbox(?!\.lock$)([.-].+)?|\.?identity\.json.*|\.?proposed-device-id.*|\.?receiver-ca\.pem.*|\.?enroll[.-].+"
    r"|\.?runs\..+|http-token"
)
"""What the agent itself puts into its folder; a user's own files there stay. The spool folder's files go, too."""


def unenroll(arguments: argparse.Namespace) -> int:
    """Delete the identity and its token; everything recorded stays."""
    home = settings_of(arguments)[config.HOME]
    identity = identities.load(home)
    if identity is None:
        raise NotEnrolled("this device is not enrolled; nothing was changed")
    _confirm(arguments, f"the token of {identity.device_id} will be deleted; everything recorded stays")
    identities.propose_id(home, read_machine(), identity.device_id)  # enrolled again, it is the same device
    identities.path(home).unlink()
    files.sync_folder(home)
    reload_service(home)
    print(
        f"{identity.device_id} is not enrolled any more; recording goes on. Its receiver still lists it; an "
        f"administrator can retire it: pisync-receiver device retire {identity.device_id}"
    )
    return DONE


def reset(arguments: argparse.Namespace) -> int:
    """Delete everything of the agent on this device, but its settings."""
    home = config.settings_from(arguments)[config.HOME]
    with _stopped(home):
        held = _described(home, discard=arguments.discard_pending, flag="--discard-pending")
        _confirm(arguments, f"this will be deleted: {held}")
        _delete(home, keep=())
    print(f"deleted: {held}")
    return DONE


def seal(arguments: argparse.Namespace) -> int:
    """Delete what copies of this card must not share, so that each becomes a device of its own."""
    home = config.settings_from(arguments)[config.HOME]
    if not arguments.keep_machine_id and os.geteuid() != 0:
        raise WrongUsage("seal empties /etc/machine-id, as root: sudo pisync seal; or add --keep-machine-id")
    with _stopped(home):
        held = _described(home, discard=arguments.discard_test_events, flag="--discard-test-events")
        _confirm(arguments, f"this will be deleted: {held}")
        _delete(home, keep=(PENDING,))
        note_state(home, None)
    print(f"deleted: {held}")
    if not arguments.keep_machine_id:
        MACHINE_ID.write_bytes(b"")  # systemd fills it at the next boot
        print(f"emptied {MACHINE_ID}: each copy gets an id of its own at its first boot")
    there = (home / PENDING).exists()
    then = "Its copies enroll by the file that was taken up" if there else "Put pisync-enroll.toml on it"
    print(f"sealed. Shut this machine down now, and copy the card. {then}")
    return DONE


@contextlib.contextmanager
def _stopped(home: Path) -> Iterator[None]:
    """Act as the folder's owner while no process writes the outbox. Raises LockHeld."""
    with contextlib.ExitStack() as held:
        held.enter_context(acting_as_owner(home))
        try:
            held.enter_context(writer_lock(files.lock(home)))
        except LockHeld as error:
            raise LockHeld(f"{error}: {_STOP}") from error
        yield


def _described(home: Path, *, discard: bool, flag: str) -> str:
    """Say what there is to delete. Raises StillPending if that was not delivered, unless it may be discarded."""
    try:
        state = _state(home)
    except StoreUnusable as error:
        if not discard:
            raise StillPending(
                f"{error}. How much is pending is unknown; nothing was deleted; {flag} deletes it"
            ) from error
        state = OutboxState()
    spool = spool_folder.counts(home) or SpoolCounts()
    spooled = spool.pending + spool.refused
    if (state.waiting or state.dead or spooled) and not discard:
        raise StillPending(
            f"{count(state.waiting, 'event')} pending, {state.dead:,} rejected, and {count(spooled, 'file')} in the "
            "spool folder, are on this device alone; nothing was deleted. Start the service, deliver them with "
            f"`pisync sync`, or add {flag}"
        )
    identity = None
    with contextlib.suppress(NotEnrolled):  # damaged: it goes, too
        identity = identities.load(home)
    parts = [
        f"{count(state.waiting, 'event')} pending",
        f"{state.dead:,} rejected",
        f"{count(max(0, state.delivered - state.kept_from + 1), 'delivered event')}",
        f"{count(len(state.salvaged), 'file')} set aside",
        *([f"{count(spooled, 'file')} in the spool folder"] if spooled else []),
        "no identity" if identity is None else f"the identity {identity.device_id} with its token",
    ]
    return ", ".join(parts)


def _state(home: Path) -> OutboxState:
    if not files.database(home).exists():
        return OutboxState()
    with OutboxReader(home) as outbox:
        return outbox.state()


def _delete(home: Path, *, keep: tuple[str, ...]) -> None:
    for entry in home.iterdir():
        if _OWN.fullmatch(entry.name) and entry.name not in keep and not entry.is_dir():
            entry.unlink()
    spool = home / spool_folder.FOLDER
    if spool.is_dir() and not spool.is_symlink():
        for entry in spool.iterdir():
            if not entry.is_dir() or entry.is_symlink():
                entry.unlink()
        files.sync_folder(spool)
    files.sync_folder(home)


def _confirm(arguments: argparse.Namespace, what: str) -> None:
    """Return if the user says yes. Raises WrongUsage."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise WrongUsage(f"{what}. Add --yes if that is intended; nothing was changed")
    print(f"{what}. Type yes to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        raise WrongUsage("nothing was changed")


def _yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _reset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--discard-pending", action="store_true", help="delete events that were never delivered, too")
    _yes(parser)


def _seal_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--discard-test-events", action="store_true", help="delete events that were never delivered")
    parser.add_argument("--keep-machine-id", action="store_true", help="leave /etc/machine-id as it is")
    _yes(parser)


_STOP_FIRST: Final = f"Stop the service first: {_STOP}. Settings stay."

UNENROLL: Final = Command(run=unenroll, example="unenroll --yes", arguments=_yes)
RESET: Final = Command(
    run=reset,
    example="reset --yes",
    arguments=_reset_arguments,
    more=_STOP_FIRST,
)
SEAL: Final = Command(
    run=seal,
    example="seal --yes",
    arguments=_seal_arguments,
    more=f"For a card that is to be copied. {_STOP_FIRST}",
)
