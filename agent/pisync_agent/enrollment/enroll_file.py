"""`pisync-enroll.toml`: what a device needs to enroll without a person at it.

    receiver = "https://pisync.example.org"
    code = "K7MQ-2XPD-9RTA-WW4Z"
    site = "Nakuru"                     # optional, like all that follow
    device_id = "pibook-{serial}"
    ca = "school-ca.pem"                # beside this file, or the certificate itself
    also = ["https://backup.example.org"]
    insecure_http = false

No message repeats the code.
"""

import contextlib
import difflib
import json
import os
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pisync_agent.identity as identities
from pisync_agent.enrollment.machine import Machine
from pisync_agent.enrollment.state import PENDING
from pisync_agent.outbox.files import random_hex
from pisync_common.errors import RuleError
from pisync_common.limits import KIB
from pisync_common.rules import check_id, check_site

_BYTES: Final = 64 * KIB
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_PEM: Final = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE: Final = re.compile(f"{_PEM}[A-Za-z0-9+/=\\s]+-----END CERTIFICATE-----")


@dataclass(frozen=True, kw_only=True)
class EnrollFile:
    """A checked enrollment file. Raises RuleError, or TypeError where a value has another type."""

    receiver: str
    code: str = field(repr=False)
    site: str | None = None
    device_id: str | None = None
    """A pattern: see `device_id_of`."""
    ca: str | None = None
    """The certificate of the only authority to trust, as PEM."""
    insecure_http: bool = False
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in (self.receiver, *self.also):
            identities.checked_url(each, insecure_http=self.insecure_http)
        identities.checked_code(self.code)
        if self.site is not None:
            check_site(self.site)
        if self.device_id is not None:
            sample = dict.fromkeys(_PLACEHOLDERS, "0")
            check_id("device_id", _filled(self.device_id, sample))


_PLACEHOLDERS: Final = ("serial", "machine", "hostname", "random")


def device_id_of(pattern: str, here: Machine) -> str:
    """Return the device id that a pattern gives this machine. Raises RuleError where it has no such number.

    `{serial}` is the board's serial number, `{machine}` the last 12 characters of the machine id, `{hostname}` the name
    of the machine, `{random}` 12 random characters.
    """
    values = {
        "serial": here.board,
        "machine": here.system and here.system[-12:],
        "hostname": re.sub("[^A-Za-z0-9-]", "", socket.gethostname().partition(".")[0]) or None,
        "random": random_hex(6),
    }
    return check_id("device_id", _filled(pattern, values))


def read_enroll_file(file: Path) -> EnrollFile:
    """Read a file as an administrator wrote it, on Windows too. Raises RuleError that names what is wrong, OSError."""
    import tomllib  # an idle service has no use for it

    text = _text(_content(file))
    try:
        return _checked(tomllib.loads(text), file.parent)
    except tomllib.TOMLDecodeError as error:
        raise RuleError(f'it is not TOML: {error}. A line is written like: receiver = "https://…"') from None
    except RecursionError:
        raise RuleError("it is not TOML: it is nested too deeply") from None


def load_pending(home: Path, *, name: str = PENDING) -> EnrollFile | None:
    """Return the file that is pending in the agent's folder. Raises RuleError if it is damaged, OSError."""
    try:
        stored: dict[str, Any] = json.loads(_content(home / name))
        return EnrollFile(**(stored | {"also": tuple(stored["also"])}))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RuleError("the stored enrollment file is damaged: put it in place again") from None


def store_pending(home: Path, wanted: EnrollFile, *, name: str = PENDING) -> None:
    """Store it atomically and durably, for the agent's user alone. Raises OSError."""
    identities.store(home / name, json.dumps(asdict(wanted)).encode())


def pending_host(home: Path) -> str | None:
    """Return the host of the receiver that an enrollment file waits for."""
    with contextlib.suppress(RuleError, OSError):
        wanted = load_pending(home)
        return None if wanted is None else urlsplit(wanted.receiver).hostname
    return None


def _content(file: Path) -> bytes:
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as found:
        if not stat.S_ISREG(os.fstat(found.fileno()).st_mode):
            raise RuleError("it is not a file")
        content = found.read(_BYTES + 1)
    if len(content) > _BYTES:
        raise RuleError(f"it is larger than {_BYTES // KIB} KiB")
    return content


def _text(content: bytes) -> str:
    """Decode what editors write: UTF-8, with or without its mark, or UTF-16."""
    try:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return content.decode("utf-16")
        if b"\0" in content[:4]:
            return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le")
        return content.decode("utf-8-sig")
    except ValueError:
        raise RuleError("it is not text in UTF-8 or UTF-16: save it as UTF-8") from None


def _checked(values: Mapping[str, Any], folder: Path) -> EnrollFile:
    known = [each.name for each in fields(EnrollFile)]
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise RuleError(f"there is no key {name[:40]!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        kind, how = _KINDS.get(name, (str, "text in quotes"))
        if not isinstance(value, kind):
            raise RuleError(f"{name} must be {how}")
    for name in ("receiver", "code"):
        if name not in values:
            raise RuleError(f"{name} is missing")
    if not all(isinstance(url, str) for url in values.get("also", ())):
        raise RuleError("also must be a list of addresses in quotes")
    given = dict(values) | {"also": tuple(values.get("also", ()))}
    if "ca" in given:
        given["ca"] = _authority(given["ca"], folder)
    return EnrollFile(**given)


_KINDS: Final = {"insecure_http": (bool, "true or false"), "also": (list, "a list of addresses in quotes")}


def _authority(value: str, folder: Path) -> str:
    """Return the certificates that `ca` gives or names, and nothing else of that file: root reads it for the agent."""
    text = value
    if _PEM not in value:
        named = Path(value)
        if named.is_absolute() or ".." in named.parts:
            raise RuleError(f"ca = {value[:100]!r} must be the name of a file beside this file")
        try:
            text = _content(folder / named).decode("ascii")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RuleError(f"ca = {value[:100]!r} cannot be read ({why})") from None
    certificates = _CERTIFICATE.findall(text)
    if not certificates:
        raise RuleError(f"ca = {value[:100]!r} is not a PEM file with a certificate")
    return "".join(f"{certificate}\n" for certificate in certificates)


def _filled(pattern: str, values: Mapping[str, str | None]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            names = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
            raise RuleError(f"device_id: there is no {match[0][:40]}; there are {names}")
        if (found := values[match[1]]) is None:
            raise RuleError(f"device_id: this machine has no {match[0]}; use another of its numbers, or {{random}}")
        return found

    return _PLACEHOLDER.sub(value, pattern)
