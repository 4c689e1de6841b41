"""The device's clock against the receiver's, NTP's and the kernel's opinion of it.

One question by SNTP (RFC 4330; the packet is that of RFC 5905), to the servers that this device's own time service
uses. The question contains no time of this device, as RFC 5905's authors recommend today.
"""

import os
import re
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pisync_agent.clock import RELEASED_MS
from pisync_agent.doctor.disk import output_of
from pisync_agent.doctor.findings import Finding, bad, ok, warn
from pisync_agent.formatting import moment, span
from pisync_common.times import now_ms

NTP_PORT: Final = 123
NTP_S: Final = 2.0
NTP_SERVERS: Final = 2
"""The most servers that are asked."""
SETTLED_MS: Final = 2_000
"""A clock this close is right: the receiver's `Date` has whole seconds."""
PLAUSIBLE_MS: Final = 5 * 60_000
"""The receiver takes times up to so far ahead as they are."""

_DEFAULT_SERVERS: Final = ("0.debian.pool.ntp.org", "1.debian.pool.ntp.org")
_CONFIGURATION: Final = (
    Path("/usr/lib/systemd/timesyncd.conf.d"),
    Path("/etc/systemd/timesyncd.conf"),
    Path("/etc/systemd/timesyncd.conf.d"),
)
_SERVER_LINE: Final = re.compile(r"^\s*(NTP|FallbackNTP)\s*=\s*(.*)$", re.MULTILINE)
_PACKET: Final = struct.Struct("!BBBb11I")
_QUESTION: Final = 0x23
"""Version 4, a client."""
_UNSYNCHRONISED: Final = 3
_SERVER: Final = 4
_EPOCH_S: Final = 2_208_988_800
"""From 1900 to 1970."""
_ERA_S: Final = 2**32
_SET: Final = (
    "Connect the device to the internet for some minutes; or set it: sudo date -s '2026-11-23 10:00' (as it is now)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockFacts:
    """What the device's clock shows, and how far others are ahead of it, in milliseconds; None if unknown."""

    now_ms: int
    synced: bool
    ntp_ms: int | None = None
    ntp_server: str = ""
    receiver_ms: int | None = None
    ntp_off: bool = False
    """Whether the device's time service is switched off."""


def check_clock(facts: ClockFacts, *, blocks_tls: bool) -> Finding:
    """Judge the clock. `blocks_tls` says that the receiver's certificate is not valid at the time it shows."""
    ahead = facts.receiver_ms if facts.ntp_ms is None else facts.ntp_ms
    evidence = _evidence(facts)
    advice, fix = _SET, "ntp" if facts.ntp_off else None
    if facts.now_ms < RELEASED_MS and (ahead is None or ahead > PLAUSIBLE_MS):
        behind = "" if ahead is None else f", {_distance(ahead)}"
        return bad(
            "clock",
            f"The clock of this device is wrong: it shows {moment(facts.now_ms)}{behind}. Secure connections fail "
            "until it is right.",
            *evidence,
            advice=advice,
            fix=fix,
        )
    if ahead is None:
        return _unknown(facts, evidence, blocks_tls=blocks_tls)
    if abs(ahead) <= SETTLED_MS:
        return ok("clock", f"right, to {max(abs(ahead) / 1000, 0.1):.1f} s", *evidence)
    if blocks_tls and abs(ahead) > PLAUSIBLE_MS:
        return bad(
            "clock",
            f"The clock of this device is {_distance(ahead)}. Deliveries are refused until it is right.",
            *evidence,
            advice=advice,
            fix=fix,
        )
    if abs(ahead) > PLAUSIBLE_MS:
        return warn(
            "clock",
            f"The clock of this device is {_distance(ahead)}. Times of events are corrected when they are delivered.",
            *evidence,
            advice=advice,
            fix=fix,
        )
    return ok("clock", f"{_distance(ahead)}: times of events are corrected when they are delivered", *evidence)


def _unknown(facts: ClockFacts, evidence: tuple[str, ...], *, blocks_tls: bool) -> Finding:
    shown = f"it shows {moment(facts.now_ms)}"
    if facts.synced:
        return ok("clock", f"synchronised, says the kernel; {shown}", *evidence)
    if blocks_tls:
        return warn(
            "clock",
            f"The clock of this device may be wrong: {shown}, and nothing could be asked for the time.",
            *evidence,
            advice=f"Compare it with a watch. If it is wrong: {_SET[0].lower()}{_SET[1:]}",
            fix="ntp" if facts.ntp_off else None,
        )
    return ok("clock", f"{shown}; not synchronised: times of events are corrected when they are delivered", *evidence)


def _evidence(facts: ClockFacts) -> tuple[str, ...]:
    kernel = f"the kernel says: {'synchronised' if facts.synced else 'not synchronised'}"
    off = "the time service is switched off (timedatectl)" if facts.ntp_off else ""
    receiver = "" if facts.receiver_ms is None else f"by the receiver: {_distance(facts.receiver_ms)}"
    ntp = "" if facts.ntp_ms is None else f"by NTP ({facts.ntp_server}): {_distance(facts.ntp_ms)}"
    return tuple(filter(None, (kernel, off, receiver, ntp)))


def _distance(ahead_ms: int) -> str:
    """Return how far the device's clock is off, where the true time is `ahead_ms` ahead of it."""
    if abs(ahead_ms) <= SETTLED_MS:
        return "right"
    seconds = abs(ahead_ms) / 1000
    years = seconds / (365.25 * 86_400)
    text = f"{years:.1f} years" if years >= 1 else span(seconds)
    return f"{text} {'behind' if ahead_ms > 0 else 'ahead'}"


# NTP


def ntp_servers(configuration: Sequence[Path] = _CONFIGURATION) -> list[str]:
    """Return the servers of systemd's time service, those of Debian where it names none."""
    found: dict[str, list[str]] = {"NTP": [], "FallbackNTP": []}
    for place in configuration:
        try:
            files = sorted(place.glob("*.conf")) if place.is_dir() else [place]
            for file in files:
                for name, value in _SERVER_LINE.findall(file.read_text("ascii", errors="replace")[:100_000]):
                    found[name] = [*found[name], *value.split()] if value.strip() else []
        except OSError:
            continue
    return (found["NTP"] or found["FallbackNTP"] or list(_DEFAULT_SERVERS))[:NTP_SERVERS]


def ask_ntp(
    server: str, *, port: int = NTP_PORT, seconds: float = NTP_S, now_ms: Callable[[], int] = now_ms
) -> int | None:
    """Return by how many milliseconds a server's time is ahead of this device's; None if it gives no good answer."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(server, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as link:
            link.settimeout(seconds)
            link.connect(place)
            nonce = struct.unpack("!2I", os.urandom(8))
            sent_ms, began = now_ms(), time.monotonic()
            link.send(_PACKET.pack(_QUESTION, 0, 0, 0, *[0] * 9, *nonce))
            answer = link.recv(1024)
            return _offset(answer, nonce, sent_ms, sent_ms + round((time.monotonic() - began) * 1000))
    except (OSError, UnicodeError, struct.error):
        return None


def _offset(answer: bytes, nonce: tuple[int, ...], sent_ms: int, received_ms: int) -> int | None:
    """Return the offset of RFC 5905, section 8; None for an answer that is of no use."""
    first, stratum, _, _, *words = _PACKET.unpack(answer[: _PACKET.size])
    origin, received, sent = words[5:7], words[7:9], words[9:11]
    if tuple(origin) != nonce or first & 7 != _SERVER or first >> 6 == _UNSYNCHRONISED or not 1 <= stratum <= 15:
        return None
    return round(((_ms(*received) - sent_ms) + (_ms(*sent) - received_ms)) / 2)


def _ms(seconds: int, fraction: int) -> float:
    """Return an NTP time in milliseconds since 1970: small numbers are those after 2036."""
    era = _ERA_S if seconds < _ERA_S // 2 else 0
    return (seconds + era - _EPOCH_S + fraction / _ERA_S) * 1000


def is_ntp_off() -> bool:
    """Return whether systemd's time service is switched off."""
    text = output_of("timedatectl", "show", "--property=NTP", "--value") if Path("/run/systemd/system").is_dir() else ""
    return (text or "").strip() == "no"
