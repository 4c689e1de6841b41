"""`pisync logs`: what the service wrote to the system's journal."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pisync_agent.commands.command import Command
from pisync_agent.commands.usage import WrongUsage, whole_number
from pisync_agent.errors import StoreUnusable

UNIT: Final = "pisync-agent.service"
JOURNALS: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
SYSTEMD: Final = Path("/run/systemd/system")
"""It is there if systemd runs this machine."""

Execute = Callable[[str, list[str]], object]
"""Becomes another program, as `os.execvp` does."""


def logs(arguments: argparse.Namespace) -> int:
    show(command(whole_number("--lines", arguments.lines), follow=arguments.follow, since=arguments.since))
    raise AssertionError("unreachable: the process is another program now")


def command(lines: int, *, follow: bool = False, since: str | None = None) -> list[str]:
    """Return the command that shows the service's lines."""
    if since is not None and since.startswith("-"):
        raise WrongUsage(f"--since must be a time, such as '1 hour ago' or 2026-11-23; got {since[:40]!r}")
    return [
        "journalctl",
        f"--unit={UNIT}",
        f"--lines={lines}",
        *(["--follow"] if follow else []),
        *([f"--since={since}"] if since is not None else []),
    ]


def show(
    words: list[str],
    *,
    execute: Execute = os.execvp,
    systemd: Path = SYSTEMD,
    journals: Sequence[Path] = JOURNALS,
) -> None:
    """Become journalctl. Raises WrongUsage where there is no journal, StoreUnusable where this user may not read it."""
    if not systemd.exists():
        raise WrongUsage(
            "systemd does not run here, so there is no journal. The service logs to its standard error: look where "
            "`pisync run` was started, such as in the container's log"
        )
    if not may_read(journals):
        raise StoreUnusable(
            "this user may not read the system's journal: sudo pisync logs; or join the group systemd-journal (sudo "
            "usermod -aG systemd-journal USER) and sign in again"
        )
    try:
        execute(words[0], words)
    except FileNotFoundError as error:
        raise WrongUsage("journalctl is not installed; the package systemd has it") from error


def may_read(journals: Sequence[Path] = JOURNALS) -> bool:
    """Return whether this user may read a journal of the system; also where none was found, for journalctl knows."""
    found = []
    for folder in journals:
        try:
            found += [machine / "system.journal" for machine in folder.iterdir()]
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return not found or any(os.access(file, os.R_OK) for file in found)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--lines", metavar="N", default="100", help="how many to show, at most (default: 100)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on showing new lines, until Ctrl-C")
    parser.add_argument("--since", metavar="TIME", help="only lines after this time, such as '1 hour ago' or yesterday")


LOGS: Final = Command(run=logs, example="logs --since '1 hour ago'", arguments=_arguments)
