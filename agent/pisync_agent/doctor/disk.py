"""The disk under the agent's folder, and what the kernel says about it."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pisync_agent.doctor.findings import Finding, bad, ok, skipped, warn
from pisync_agent.formatting import count, moment, size
from pisync_agent.outbox import space
from pisync_common.limits import MIB

FULL_BYTES: Final = 4 * MIB
LOW_BYTES: Final = 64 * MIB
LOW_INODES: Final = 100
KERNEL_LINES: Final = 3
"""The newest lines of the kernel's log that are shown."""
COMMAND_S: Final = 2.0
"""How long a program of the system may take."""

_OUTPUT_CHARS: Final = 1_000_000
_LOG_RECORDS: Final = 20_000
_LINE_CHARS: Final = 160
_FAULT: Final = re.compile(
    r"I/O error|EXT4-fs error|F2FS-fs.*error|Remounting filesystem read-only|critical (?:medium|target) error"
    r"|mmc\w*:.*(?:error|timeout|timed out)|JBD2: .*error|Aborting journal",
    re.IGNORECASE,
)
_IMAGE: Final = re.compile(r"\bloop\d")
"""A disk image that is mounted: what is wrong with it is of no concern here, unless the folder is in it."""
_POWER: Final = re.compile(r"under-?voltage detected", re.IGNORECASE)
_REPLACE: Final = (
    'Deliver what is pending (`pisync sync`), then replace the card: see "Replacing a card" in the guide. A card '
    "that fails once fails again."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskFacts:
    """The file system of a folder."""

    free_bytes: int
    total_bytes: int
    free_inodes: int | None
    """None where the file system does not count them."""
    read_only: bool
    device: str = ""
    """The kernel's name of the device, such as `mmcblk0p2`; empty where there is none."""


def disk_facts(folder: Path) -> DiskFacts:
    """Return the facts of the file system of a folder, or of the nearest folder above it. Raises OSError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return DiskFacts(
        free_bytes=space.free_bytes(folder),
        total_bytes=space.total_bytes(folder),
        free_inodes=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
        device=_device(folder),
    )


def _device(folder: Path) -> str:
    number = folder.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return link.resolve().name if link.exists() else ""


def check_disk(facts: DiskFacts, *, write_fault: Mapping[str, Any] | None) -> Finding:
    """Judge room, inodes and whether the disk takes writes; `write_fault` says why they fail."""
    shown = f"{size(facts.free_bytes)} free of {size(facts.total_bytes)}"
    inodes = "" if facts.free_inodes is None else f"room for {count(facts.free_inodes, 'more file')}"
    device = f"device {facts.device}" if facts.device else ""
    evidence = tuple(filter(None, (inodes, device)))
    if facts.read_only:
        return bad(
            "disk",
            "The disk takes no writes: the kernel made it read-only, as it does when a card fails. Nothing can be "
            "recorded.",
            shown,
            *evidence,
            advice=f"Restart the device. If it happens again: {_REPLACE[0].lower()}{_REPLACE[1:]}",
        )
    if facts.free_bytes < FULL_BYTES or facts.free_inodes == 0:
        what = "has no room for another file (its inodes are used up)" if facts.free_inodes == 0 else "is full"
        return bad(
            "disk",
            f"The disk {what}: {shown}. New work of learners is refused; what was recorded is kept.",
            *evidence,
            advice="Delete files that are not needed (videos, old downloads), then run: pisync sync",
        )
    if write_fault is not None:
        if "count" in write_fault:
            since = f"since {moment(write_fault['since_ms'])}, {count(write_fault['count'], 'failed write')}"
            evidence = (since, *evidence)
        return bad("disk", "Recording fails: " + str(write_fault["detail"]), shown, *evidence, advice=_REPLACE)
    if facts.free_bytes < LOW_BYTES or (facts.free_inodes is not None and facts.free_inodes < LOW_INODES):
        return warn("disk", f"The disk is nearly full: {shown}.", *evidence, advice="Delete files that are not needed.")
    return ok("disk", shown, *evidence)


def kernel_log() -> list[str] | None:
    """Return the kernel's messages since the start of the device; None if this user may not read them."""
    lines = _kmsg()
    if lines is None:
        text = output_of("journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--output=cat", "--lines=5000")
        lines = text.splitlines() if text else None
    return lines


def _kmsg() -> list[str] | None:
    """Read the records the kernel holds, without waiting for more."""
    lines: list[str] = []
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for _ in range(_LOG_RECORDS):
            try:
                lines.append(os.read(log, 8192).decode(errors="replace").partition(";")[2].partition("\n")[0])
            except BrokenPipeError:  # records were overwritten while they were read
                continue
    except OSError:
        pass
    finally:
        os.close(log)
    return lines


def output_of(*command: str) -> str | None:
    """Return what a program of the system prints, bounded; None if there is none, or it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[-_OUTPUT_CHARS:].decode(errors="replace")


def check_kernel(lines: Sequence[str] | None, device: str) -> Finding:
    """Judge the kernel's messages about disks and about the power supply."""
    if lines is None:
        if os.geteuid() == 0:
            return skipped("kernel", "the kernel's log cannot be read on this system")
        return skipped("kernel", "only an administrator may read the kernel's log: sudo pisync doctor")
    faults = [line for line in lines if _FAULT.search(line) and not (_IMAGE.search(line) and "loop" not in device)]
    ours = [line for line in faults if _concerns(line, device)]
    if ours:
        return bad(
            "kernel",
            f"The kernel reports {count(len(ours), 'error')} of the disk with the learners' work: the card is failing.",
            *_newest(ours),
            advice=_REPLACE,
        )
    if power := [line for line in lines if _POWER.search(line)]:
        return warn(
            "kernel",
            f"The power supply is too weak ({count(len(power), 'warning')}). That ruins cards and files.",
            *_newest(power),
            advice="Use the power supply and the cable that are made for this device.",
        )
    if faults:
        return warn(
            "kernel",
            f"The kernel reports {count(len(faults), 'error')} of a disk, not of the disk with the learners' work.",
            *_newest(faults),
            advice="If a USB stick or another disk is connected, it may be failing.",
        )
    return ok("kernel", "the kernel reports no error of a disk, and no weak power supply")


def _concerns(line: str, device: str) -> bool:
    """Return whether a line is about a device, such as `mmcblk0p2`: its partition, its disk, or the card's host."""
    if not device:
        return False
    whole = (
        re.sub(r"(?<=\d)p\d+$", "", device) if device.startswith(("mmcblk", "nvme")) else device.rstrip("0123456789")
    )
    host = device.replace("blk", "").partition("p")[0] if device.startswith("mmcblk") else whole
    return any(re.search(rf"\b{re.escape(name)}(?:p?\d+)?\b", line) for name in {device, whole, host} if name)


def _newest(lines: Iterable[str]) -> tuple[str, ...]:
    texts = [" ".join("".join(char if char.isprintable() else " " for char in line).split()) for line in lines]
    return tuple(text[:_LINE_CHARS] for text in texts[-KERNEL_LINES:])
