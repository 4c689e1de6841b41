"""The device's identity at its receiver: `identity.json` in the agent's folder, readable by the agent's user only.

Where the user names no device id the device proposes an id, and remembers it until it is enrolled.
"""

import contextlib
import errno
import json
import os
import re
import socket
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pisync_agent.enrollment.machine import Fingerprint, Machine
from pisync_agent.errors import NotEnrolled
from pisync_agent.outbox.files import make_folder, random_hex, sync_folder
from pisync_common.errors import RuleError
from pisync_common.rules import check_id

FILE: Final = "identity.json"

LOOPBACK_NAMES: Final = ("localhost", "ip6-localhost", "localhost.localdomain")

PROPOSAL_FILE: Final = "proposed-device-id"
"""The id that was proposed in an enrollment whose answer has not come."""

_ROOM_BYTES: Final = 4096
_TEXT_CHARS: Final = 65_536
"""More than any identity; a longer file is damaged."""
_HOST_CHARS: Final = 253
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBERS: Final = re.compile(r"[0-9.]+")
_CODE: Final = re.compile("[0-9A-TV-Za-tv-z]{16}")
"""A code without dashes and spaces. The receiver reads O, I and L as digits, and its codes have no U."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
OTHERS: Final = 4
"""How many further addresses of its receiver a device keeps."""


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
    others: tuple[str, ...] = ()
    """Further addresses of the receiver, which know the same token, in the order to try them."""
    machine: Fingerprint = field(default_factory=dict)
    """Of the machine that it belongs to; empty until that is known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url, insecure_http=self.insecure_http))
        object.__setattr__(self, "others", self._checked(self.others))
        check_id("device_id", self.device_id)
        if not _TOKEN.fullmatch(self.token):
            raise RuleError("the token is not a token of a receiver")

    def at(self, url: str, *others: str) -> "Identity":
        """Return this identity with other addresses. Raises RuleError."""
        return replace(self, url=url, others=others)

    def _checked(self, others: Sequence[str]) -> tuple[str, ...]:
        urls = dict.fromkeys(checked_url(url, insecure_http=self.insecure_http) for url in others)
        return tuple(url for url in urls if url != self.url)[:OTHERS]

    @property
    def host(self) -> str:
        """The receiver's name or address, without port and brackets."""
        return urlsplit(self.url).hostname or ""


def checked_url(url: str, *, insecure_http: bool) -> str:
    """Return a receiver's address without a final slash; raise RuleError that shows a usable address."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.port != 0 and is_host(parts.hostname or "")
    except ValueError:
        raise bad_url(url) from None
    if parts.username is not None or parts.password is not None:
        raise RuleError("the receiver's address contains a user name or password; remove it: only the code is needed")
    if not valid or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise bad_url(url)
    if parts.scheme == "http" and not insecure_http and not is_loopback(parts.hostname or ""):
        raise RuleError(
            f"{url} is plain HTTP: others on the network could read what learners do and take this device's token. "
            "Use https://, or --insecure-http where that is acceptable"
        )
    return url.rstrip("/")


def bad_url(url: str) -> RuleError:
    """Return the error for an address that is not a receiver's."""
    return RuleError(f"{_masked(url)!r} is not the address of a receiver; write it as https://pisync.example.org")


def checked_code(code: str) -> str:
    """Return an enrollment code as the receiver takes it; raise RuleError, which does not repeat it.

    Case, dashes and spaces do not matter, and a code from a document may have other dashes and spaces than a keyboard.
    """
    plain = "".join(
        " " if each.isspace() else "-" if unicodedata.category(each) == "Pd" else each
        for each in unicodedata.normalize("NFKC", code)
    ).strip()
    bare = re.sub("[ -]", "", plain)
    if not _CODE.fullmatch(bare):
        odd = "" if len(bare) == 16 else f" (it has {len(bare)} characters)"
        raise RuleError(
            f"this is not an enrollment code{odd}: a code has 16 letters and digits, no U among them, such as "
            "K7MQ-2XPD-9RTA-WW4Z. Write it as the administrator gave it"
        )
    return plain


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
        known = json.loads(_read(file))
        return Identity(
            url=known["url"],
            device_id=known["device_id"],
            token=known["token"],
            insecure_http=bool(known.get("insecure_http", False)),
            ca_file=known.get("ca_file"),
            others=tuple(known.get("others", ())),
            machine={str(name): str(value) for name, value in dict(known.get("machine", {})).items()},
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotEnrolled(f"{file} cannot be read ({error.strerror}); run this with sudo") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Without its cause: a decoder's error quotes the text, and with it the token.
        raise NotEnrolled(f"{file} is damaged; enroll this device again (everything recorded is kept)") from None


def _read(file: Path) -> str:
    """Return a file's text; do not wait where a pipe is in its place. Raises OSError, ValueError."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as found:
        return found.read(_TEXT_CHARS)


def save(home: Path, identity: Identity) -> None:
    """Store `identity` atomically and durably, with mode 0600. Raises OSError."""
    store(path(home), f"{json.dumps(asdict(identity), indent=2)}\n".encode())
    with contextlib.suppress(OSError):  # the proposal has done its work; later it would do no harm
        (home / PROPOSAL_FILE).unlink(missing_ok=True)


def prove_writable(home: Path, *, room: int = 0) -> None:
    """Do what `save` will do, with `room` bytes more: a code must not be spent where that fails. Raises OSError."""
    known, trial = path(home), home / f".{FILE}.trial"
    try:
        store(trial, bytes(_ROOM_BYTES + room))
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
    if known.is_file():
        store(known, known.read_bytes())
    elif known.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(known))


def proposed_id(home: Path, here: Machine, suggest: Callable[[], str] | None = None) -> str:
    """Return the device id to propose, from `suggest` the first time: the same again until the device is enrolled.

    An answer may have been lost, and only the same code with the same id gets it again. A copied card proposes another.
    """
    try:
        device_id, *of = (home / PROPOSAL_FILE).read_text("ascii").split()
        if of and of != [here.number]:
            raise ValueError("proposed on another machine")
        return check_id("device_id", device_id)
    except (OSError, ValueError):
        return propose_id(home, here, suggested_device_id(here) if suggest is None else suggest())


def propose_id(home: Path, here: Machine, device_id: str | None = None) -> str:
    """Return an id, a random one by default, that `proposed_id` returns from now on. Raises OSError."""
    device_id = device_id or random_device_id()
    store(home / PROPOSAL_FILE, f"{device_id} {here.number or ''}\n".encode())
    return device_id


def store(file: Path, content: bytes) -> None:
    """Store a file of the agent's folder atomically and durably, with mode 0600. Raises OSError."""
    make_folder(file.parent)
    new = file.with_name(f".{file.name}.{random_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def suggested_device_id(here: Machine, *, random_hex: Callable[[int], str] = random_hex) -> str:
    """Return a device id where the user gives none: from the board or the installed system, else random."""
    return random_device_id(random_hex=random_hex) if here.number is None else f"pi-{here.number}"


def random_device_id(*, random_hex: Callable[[int], str] = random_hex) -> str:
    return f"pi-{random_hex(6)}"


def is_host(host: str) -> bool:
    """Return whether a name, or an IP address without brackets, may be a host's. Raises ValueError if it is not."""
    if ":" in host:
        return _is_address(socket.AF_INET6, host.partition("%")[0])
    name = host.encode("idna").decode("ascii")
    if not _HOST.fullmatch(name.removesuffix(".")) or len(name) > _HOST_CHARS:
        return False
    # What looks like an IPv4 address must be one.
    return not _NUMBERS.fullmatch(name) or _is_address(socket.AF_INET, name)


def _is_address(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True


def _masked(url: str) -> str:
    parts: SplitResult | None
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    return "…" + url.rpartition("@")[2] if "@" in parts.netloc else url[:200]
