"""The device's identity at its receiver: `identity.json` in the agent's folder, readable by the agent's user only."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pisync_agent.errors import NotEnrolled
from pisync_agent.outbox.files import make_folder, random_hex, sync_folder
from pisync_common.errors import RuleError
from pisync_common.rules import check_id

FILE: Final = "identity.json"

LOOPBACK_NAMES: Final = ("localhost", "ip6-localhost", "localhost.localdomain")

_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
_SERIAL_FILES: Final = (Path("/sys/firmware/devicetree/base/serial-number"), Path("/etc/machine-id"))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A device's name, its token, and where its receiver is."""

    url: str
    """The receiver's address, such as `https://pisync.example.org`, without a final slash."""
    device_id: str
    token: str = field(repr=False)
    insecure_http: bool = False
    """Plain HTTP is allowed, not only to this machine."""
    ca_file: str | None = None
    """The PEM file of the only certificate authority to trust; None for those of the system."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url, insecure_http=self.insecure_http))
        check_id("device_id", self.device_id)
        if not _TOKEN.fullmatch(self.token):
            raise RuleError("the token is not a token of a receiver")

    @property
    def host(self) -> str:
        """The receiver's name or address, without port and brackets."""
        return urlsplit(self.url).hostname or ""


def checked_url(url: str, *, insecure_http: bool) -> str:
    """Return a receiver's address without a final slash; raise RuleError that shows a usable address."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # a property that raises
        valid = parts.scheme in ("http", "https") and bool(_ascii(parts.hostname or ""))
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise RuleError(f"{_masked(url)!r} is not the address of a receiver; write it as https://pisync.example.org")
    if parts.username is not None or parts.password is not None:
        raise RuleError("the receiver's address contains a user name or password; remove it: only the code is needed")
    if parts.scheme == "http" and not insecure_http and not is_loopback(parts.hostname or ""):
        raise RuleError(
            f"{url} is plain HTTP: others on the network could read what learners do and take this device's token. "
            "Use https://, or --insecure-http where that is acceptable"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine and cannot be another machine."""
    if host.lower() in LOOPBACK_NAMES or host == "::1":
        return True
    with contextlib.suppress(OSError):
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    return False


def path(home: Path) -> Path:
    """Return the file of the identity."""
    return home / FILE


def load(home: Path) -> Identity | None:
    """Return the identity stored in `home`; None if there is none. Raises NotEnrolled if it cannot be used."""
    file = path(home)
    try:
        known = json.loads(file.read_text("utf-8"))
        return Identity(
            url=known["url"],
            device_id=known["device_id"],
            token=known["token"],
            insecure_http=bool(known.get("insecure_http", False)),
            ca_file=known.get("ca_file"),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotEnrolled(f"{file} cannot be read ({error.strerror}); run this as the agent's user") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Without its cause: a decoder's error quotes the text, and with it the token.
        raise NotEnrolled(f"{file} is damaged; enroll this device again (everything recorded is kept)") from None


def save(home: Path, identity: Identity) -> None:
    """Store `identity` atomically and durably, with mode 0600. Raises OSError."""
    make_folder(home)
    file, new = path(home), home / f".{FILE}.{random_hex(4)}"
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            json.dump(asdict(identity), out, indent=2)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(home)


def suggested_device_id(
    *, serial_files: tuple[Path, ...] = _SERIAL_FILES, random_hex: Callable[[int], str] = random_hex
) -> str:
    """Return a device id where the user gives none: from the serial number, else the machine's id, else random.

    Only its end: enough to tell the devices of a school apart, and a machine id should not be shown whole.
    """
    for file in serial_files:
        with contextlib.suppress(OSError, ValueError):
            serial = re.sub(r"[^0-9a-f]", "", file.read_text("ascii").lower())
            if len(serial) >= 8 and serial.strip("0"):
                return f"pi-{serial[-12:]}"
    return f"pi-{random_hex(6)}"


def _ascii(host: str) -> bytes:
    """Return a host name as DNS knows it. Raises UnicodeError (a ValueError) if it is not one."""
    return host.encode("idna")


def _masked(url: str) -> str:
    parts: SplitResult | None
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    return "…" + url.rpartition("@")[2] if "@" in parts.netloc else url[:200]
