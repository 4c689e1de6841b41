"""`pisync support`: one file with what an engineer needs, and nothing that must not leave the device."""

import argparse
import io
import os
import sys
import tarfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pisync_agent.config as config
from pisync_agent.commands.command import Command
from pisync_agent.commands.usage import DONE, WrongUsage

_FILE_MODE: Final = 0o640


def support(arguments: argparse.Namespace) -> int:
    from pisync_agent.commands.bundle import Bundle

    settings = config.settings_from(arguments)
    path = Path(arguments.output or time.strftime("pisync-support-%Y%m%d-%H%M%S.tar.gz"))
    if path.exists():
        raise WrongUsage(f"{path} exists already; name another file with --output")
    content = packed(path.name.partition(".")[0], Bundle(settings).collect())
    _write(path, content)
    print(path)
    print(
        "pisync: send this file to an engineer. It has no token, no learner and no data of an event; look into it with "
        f"tar -xzf {path}",
        file=sys.stderr,
    )
    return DONE


def packed(folder: str, files: Mapping[str, bytes]) -> bytes:
    """Return a .tar.gz with the files in one folder."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode, member.mtime = len(content), 0o644, int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write a new file, for the user who called `sudo` too. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    with open(fd, "wb") as file:  # noqa: PTH123 - a new file, and never through a link
        file.write(content)
        with suppress(KeyError, ValueError, OSError):
            os.fchown(file.fileno(), int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="FILE", help="the file to write (default: pisync-support-DATE.tar.gz in this folder)"
    )


SUPPORT: Final = Command(
    run=support,
    example="support --output /media/stick/pibook-0042.tar.gz",
    arguments=_arguments,
    more=(
        "It has versions, status, settings without passwords, the last runs, counts of events by type, names and\n"
        "sizes of PiSync's files, disk, clock, unit and the last 500 lines of the journal; no token, no code, no\n"
        "learner and no data of an event. It takes 20 seconds at most, and the file is smaller than 1 MiB. With sudo\n"
        "it has more: the journal is not everyone's to read."
    ),
)
