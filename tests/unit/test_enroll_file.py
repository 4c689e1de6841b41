"""`pisync-enroll.toml`, as editors of every kind write it."""

import os
from pathlib import Path

import pytest

from pisync_agent.enrollment.enroll_file import (
    EnrollFile,
    device_id_of,
    load_pending,
    read_enroll_file,
    store_pending,
)
from pisync_agent.enrollment.machine import Machine
from pisync_agent.enrollment.state import PENDING
from pisync_common.errors import RuleError
from tests.support.certificates import Authority

CODE = "9RTA-WW4Z-K7MQ-2XPD"
URL = "https://r.example"
TEXT = f'receiver = "{URL}"\ncode = "{CODE}"\n'
HERE = Machine(board="10000000a1b2c3d4", system="0123456789abcdef0123456789abcdef")


def read(folder: Path, content: bytes | str) -> EnrollFile:
    file = folder / "pisync-enroll.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_enroll_file(file)


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.rstrip().encode(),
    ],
)
def test_every_editors_file_is_read(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == EnrollFile(receiver=URL, code=CODE)


def test_every_key_is_read_and_stored(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca").certificate
    text = (
        f'receiver = "http://192.0.2.1"\ncode = "{CODE}"\nsite = "Écol, №7"\ndevice_id = "pibook-{{serial}}"\n'
        f'ca = "ca/{authority.name}"\nalso = ["https://b.example"]\ninsecure_http = true\n'
    )
    found = read(tmp_path, text)
    home = tmp_path / "home"
    store_pending(home, found)

    assert (found.site, found.device_id, found.insecure_http) == ("Écol, №7", "pibook-{serial}", True)
    assert found.ca == authority.read_text()
    assert read(tmp_path, f'{TEXT}ca = """{found.ca}"""').ca == found.ca
    assert load_pending(home) == found
    assert (home / PENDING).stat().st_mode & 0o777 == 0o600
    assert CODE not in repr(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "receiver is missing"),
        (f'receiver = "{URL}"', "code is missing"),
        (f'recever = "{URL}"\ncode = "{CODE}"', "did you mean receiver"),
        (f"{TEXT}xyzzy = 1", "no key 'xyzzy'"),
        (f'receiver = {URL}\ncode = "{CODE}"', "not TOML"),
        (f'receiver = “{URL}”\ncode = "{CODE}"', "not TOML"),
        (f'receiver = "{URL}"\ncode = 1234', "code must be text in quotes"),
        (f'receiver = "{URL}"\ncode = "{CODE}X"', "not an enrollment code"),
        (f'receiver = "r.example"\ncode = "{CODE}"', "not the address"),
        (f'receiver = "http://192.0.2.1"\ncode = "{CODE}"', "plain HTTP"),
        (f'{TEXT}insecure_http = "yes"', "insecure_http must be true or false"),
        (f"{TEXT}also = [1]", "also must be a list"),
        (f'{TEXT}device_id = "pibook-{{seral}}"', "there are {serial}"),
        (f'{TEXT}device_id = "pi book"', "device_id"),
        (f'{TEXT}site = ""', "site"),
        (f'{TEXT}ca = "none.pem"', "none.pem"),
        (f'{TEXT}ca = "pisync-enroll.toml"', "not a PEM file"),
        (f'{TEXT}ca = "/etc/ssl/private/server.pem"', "beside this file"),
        (f'{TEXT}ca = "../server.pem"', "beside this file"),
        (TEXT + "#" * 70_000, "larger than"),
        ("a = " + "[" * 30_000, "not TOML"),
    ],
)
def test_what_is_wrong_is_named_without_the_code(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RuleError) as caught:
        read(tmp_path, text)

    assert said in str(caught.value)
    assert CODE not in str(caught.value)


def test_of_the_authoritys_file_certificates_alone_are_taken(tmp_path: Path) -> None:
    """A link to a file of root's, or a file with the authority's key."""
    authority = Authority(tmp_path / "ca")
    certificate = authority.certificate.read_text()
    (tmp_path / "both.pem").write_text(f"# a secret\n{certificate}-----BEGIN PRIVATE KEY-----\nMIIE\n{certificate}")

    assert read(tmp_path, f'{TEXT}ca = "both.pem"').ca == 2 * certificate


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="save it as UTF-8"):
        read(tmp_path, b"receiver = '\xe9\xff'")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RuleError, match="not a file"):
        read_enroll_file(tmp_path / "pipe")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"receiver": 3}', b"\xff", b"[" * 60_000])
def test_a_damaged_stored_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PENDING).write_bytes(content)
    with pytest.raises(RuleError, match="damaged"):
        load_pending(tmp_path)


def test_patterns_use_this_machines_numbers() -> None:
    assert device_id_of("pibook-{serial}", HERE) == "pibook-10000000a1b2c3d4"
    assert device_id_of("a-{machine}-b", HERE) == "a-456789abcdef-b"
    assert device_id_of("r-{random}", HERE) != device_id_of("r-{random}", HERE)
    with pytest.raises(RuleError, match=r"no \{serial\}"):
        device_id_of("pibook-{serial}", Machine(system=HERE.system))
