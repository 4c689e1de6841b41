"""Which machine this is. A copied card takes its files along, but not the board's serial number.

Where a board has none, it is the id of the installed system (`/etc/machine-id`), which a proper image leaves empty for
each copy to fill. What cannot be read, or may change with the next boot, is unknown: an unknown machine is never taken
for a different machine.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_BOARD: Final = "sys/firmware/devicetree/base/serial-number"
_SYSTEM: Final = "etc/machine-id"
_PASSING: Final = ("run/machine-id", ".dockerenv", "run/.containerenv")
"""Where one of these is, the machine id lasts as long as this boot, or this container."""
_SERIAL: Final = re.compile("(?=.*[1-9a-z])[0-9a-z]{8,64}")
_ID: Final = re.compile("[0-9a-f]{32}")
_BYTES: Final = 256
_SHOWN: Final = 12

Fingerprint = Mapping[str, str]
"""What is stored of a machine: hashes of what is known, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What tells this machine from others, the surest first; None for what is unknown."""

    board: str | None = None
    """The board's serial number."""
    system: str | None = None
    """The machine id of the installed system."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Return what is stored: a machine id should not be shown whole."""
        import hashlib  # loads OpenSSL, which an app that records does not need

        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: hashlib.sha256(f"pisync {value}".encode()).hexdigest()[:16] for name, value in known.items()}

    @property
    def number(self) -> str | None:
        """Return the end of the serial number, else of the machine id: enough to tell a school's devices apart."""
        whole = self.board or self.system
        return None if whole is None else whole[-_SHOWN:]


def read_machine(root: Path = Path("/")) -> Machine:
    """Return this machine."""
    passing = any((root / name).exists() for name in _PASSING)
    return Machine(board=_number(root / _BOARD, _SERIAL), system=None if passing else _number(root / _SYSTEM, _ID))


def is_another(known: Fingerprint, here: Fingerprint) -> bool:
    """Return whether `known` is certainly not the machine `here`, by the surest that both have.

    So another installation on the same board is the same machine, and a card in another board is not.
    """
    return next((known[name] != here[name] for name in ("board", "system") if name in known and name in here), False)


def _number(file: Path, shape: re.Pattern[str]) -> str | None:
    with suppress(OSError, ValueError), file.open("rb") as found:
        text = found.read(_BYTES).decode("ascii").strip(" \t\r\n\0").lower()
        return text if shape.fullmatch(text) else None
    return None
