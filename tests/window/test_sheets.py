"""Cards and files of new codes: what a person types, scans or copies is what a device accepts."""

import base64
import io
import shlex
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import pisync_agent.commands.cli as agent_cli
import pisync_agent.identity as identities
from pisync_agent.enrollment.enroll_file import read_enroll_file
from pisync_receiver.window.sheets import FILE_NAME, archive, cards, command_of

CODE = "K7MQ-2XPD-9RTA-WW4Z"
HOSTILE = 'A "school"\\ \u202e<script>'


def new_code(receiver: str = "https://pisync.example.org", **more: Any) -> dict[str, Any]:
    """Return an answer of `POST /api/enrollment-codes`."""
    site = more.pop("site", None)
    lines = [f'receiver = "{receiver}"', f'code = "{CODE}"', *(f"{key} = {value}" for key, value in more.items())]
    record = {
        "id": 1,
        "label": None,
        "site": site,
        "device_id": None,
        "uses": 1,
        "uses_left": 1,
        "created_at": "2026-11-23T10:00:00.000Z",
        "expires_at": "2026-11-30T10:00:00.000Z",
        "ended_at": None,
        "devices": [],
    }
    return {"code": CODE, "record": record, "enroll_file": "\n".join(lines) + "\n"}


@pytest.mark.parametrize(
    ("receiver", "more"),
    [
        ("https://pisync.example.org", {}),
        ("https://xn--mgbh0fb.example:8443/pisync", {"device_id": '"pibook-0042"'}),
        ("http://127.0.0.1:8080", {}),
        ("http://192.168.1.9", {"insecure_http": "true"}),
    ],
)
def test_the_agent_accepts_the_line_of_a_card(receiver: str, more: dict[str, str]) -> None:
    command = command_of(new_code(receiver, **more)["enroll_file"])
    program, *typed = shlex.split(command)
    arguments = agent_cli.parse(typed)

    assert program == "pisync"
    assert identities.checked_url(arguments.url, insecure_http=arguments.insecure_http) == receiver
    assert identities.checked_code(arguments.code) == CODE
    assert (arguments.device_id is not None) == ("device_id" in more)


def test_a_device_reads_the_files_of_a_batch(tmp_path: Path) -> None:
    names = [None, "Nakuru Primary", "مدرسة الأمل", HOSTILE, "../../etc"]
    with opened(archive([new_code(site=name) for name in names])) as files:
        for place in files.namelist():
            folder, slash, name = place.partition("/")
            assert (slash, name) == ("/", FILE_NAME)
            assert folder.replace("-", "").isalnum()
        files.extractall(tmp_path)

    found = sorted(tmp_path.rglob("*.toml"))
    assert [read_enroll_file(file).code for file in found] == [CODE] * len(names)
    assert found[2].parent.name == "003-مدرسة-الأمل"


def test_a_card_has_the_file_of_its_code() -> None:
    (card,) = cards([new_code()])
    assert tomllib.loads(content(card.file).decode())["code"] == CODE
    assert card.groups == ["K7MQ", "2XPD", "9RTA", "WW4Z"]
    assert CODE not in repr(card)


def content(address: str) -> bytes:
    return base64.b64decode(address.partition("base64,")[2])


def opened(address: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(content(address)))
