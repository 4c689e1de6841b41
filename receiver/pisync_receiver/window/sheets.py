"""What is printed and handed out of new enrollment codes: a card for each, and a file for each that a device reads.

A code is shown once and not kept, so the files are part of the page that shows it, as `data:` links.
"""

import base64
import io
import re
import shlex
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import segno

FILE_NAME: Final = "pisync-enroll.toml"
"""The name under which a device looks for its file."""
_NOT_IN_NAMES: Final = re.compile(r"\W+")
_SAME_TIME: Final = (2026, 1, 1, 0, 0, 0)
"""Of every file in an archive: the same codes give the same bytes."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One code on paper."""

    number: int
    code: str = field(repr=False)
    command: str = field(repr=False)
    """The line that enrolls a device."""
    qr: str = field(repr=False)
    """A picture of the line, as a `data:` address."""
    file: str = field(repr=False)
    """The enrollment file, as a `data:` address."""
    site: str | None
    label: str | None
    device_id: str | None
    uses: int
    expires_at: str | None

    @property
    def groups(self) -> Sequence[str]:
        """The code as it is read aloud."""
        return self.code.split("-")

    @property
    def words(self) -> Sequence[str]:
        """The line in parts between which it may be broken."""
        return self.command.split(" ")


def cards(new_codes: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Return a card for each answer of `POST /api/enrollment-codes`."""
    return [_card(number, new) for number, new in enumerate(new_codes, start=1)]


def archive(new_codes: Sequence[Mapping[str, Any]]) -> str:
    """Return the enrollment files of a batch as a ZIP archive, in a `data:` address."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as files:
        for number, new in enumerate(new_codes, start=1):
            place = zipfile.ZipInfo(f"{_folder(number, new['record'])}/{FILE_NAME}", _SAME_TIME)
            files.writestr(place, new["enroll_file"])
    return _data_address("application/zip", made.getvalue())


def command_of(enroll_file: str) -> str:
    """Return the line for a person at a device, which means the same as an enrollment file."""
    wanted = tomllib.loads(enroll_file)
    command = ["pisync", "enroll", wanted["receiver"], "--code", wanted["code"]]
    if "device_id" in wanted:
        command += ["--device-id", wanted["device_id"]]
    if wanted.get("insecure_http"):
        command.append("--insecure-http")
    return shlex.join(command)


def _card(number: int, new: Mapping[str, Any]) -> Card:
    record, enroll_file = new["record"], new["enroll_file"]
    command = command_of(enroll_file)
    qr = segno.make(command, error="m", micro=False)
    return Card(
        number=number,
        code=new["code"],
        command=command,
        qr=qr.svg_data_uri(border=4, omitsize=True),
        file=_data_address("application/toml", enroll_file.encode()),
        site=record["site"],
        label=record["label"],
        device_id=record["device_id"],
        uses=record["uses_left"],
        expires_at=record["expires_at"],
    )


def _folder(number: int, record: Mapping[str, Any]) -> str:
    """Return a name that every file system takes, which says which card it belongs to."""
    site = _NOT_IN_NAMES.sub("-", record["site"] or "").strip("-")[:40]
    return f"{number:03}-{site}" if site else f"{number:03}"


def _data_address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
