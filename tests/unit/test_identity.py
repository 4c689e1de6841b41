"""Who the device is: kept whole, kept secret, and only for addresses that will do."""

import json
import os
from pathlib import Path

import pytest

from pisync_agent import identity as identities
from pisync_agent.enrollment.machine import Machine
from pisync_agent.errors import NotEnrolled
from pisync_agent.identity import Identity, checked_url, is_loopback, suggested_device_id
from pisync_common.errors import RuleError

TOKEN = "psd_" + "s3cret" * 7


def identity(**changed: object) -> Identity:
    fields = {"url": "https://pisync.example.org", "device_id": "pibook-1", "token": TOKEN}
    return Identity(**(fields | changed))  # type: ignore[arg-type]


def test_a_saved_identity_is_loaded(tmp_path: Path) -> None:
    saved = identity(insecure_http=True, url="http://10.0.0.5:8080", ca_file="/etc/school.pem")

    identities.save(tmp_path / "home", saved)

    assert identities.load(tmp_path / "home") == saved


def test_without_a_file_there_is_no_identity(tmp_path: Path) -> None:
    assert identities.load(tmp_path) is None
    assert identities.load(tmp_path / "nowhere") is None


def test_only_its_owner_can_read_it_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        identities.save(tmp_path, identity())
        identities.save(tmp_path, identity(device_id="pibook-2"))
    finally:
        os.umask(before)

    assert identities.path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["identity.json"]


def test_a_failure_leaves_the_old_identity_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identities.save(tmp_path, identity())

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        identities.save(tmp_path, identity(device_id="pibook-2"))

    assert identities.load(tmp_path) == identity()
    assert [file.name for file in tmp_path.iterdir()] == ["identity.json"]


def test_file_and_folder_are_flushed_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def note(fd: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    identities.save(tmp_path, identity())

    assert len(flushed) == 2
    assert flushed[0].startswith(".identity.json.")
    assert flushed[1] == tmp_path.name


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", "null", '{"url": 3}', "[" * 100_000),
        json.dumps({"url": "https://x.org", "device_id": "a"}),
        json.dumps({"url": "https://x.org", "device_id": "a b", "token": TOKEN}),
        json.dumps({"url": "ftp://x.org", "device_id": "a", "token": TOKEN}),
        json.dumps({"url": "https://x.org", "device_id": "a", "token": TOKEN + "\n"}),
    ],
)
def test_the_error_for_a_damaged_file_does_not_quote_it(tmp_path: Path, text: str) -> None:
    identities.path(tmp_path).write_text(text)

    with pytest.raises(NotEnrolled, match="enroll this device again") as caught:
        identities.load(tmp_path)

    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "identity.json")
    with pytest.raises(NotEnrolled, match="is damaged; enroll this device again"):
        identities.load(tmp_path)
    identities.prove_writable(tmp_path)
    identities.save(tmp_path, identity())
    assert identities.load(tmp_path) == identity()


def test_a_folder_in_its_place_is_found_before_a_code_is_spent(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(IsADirectoryError):
        identities.prove_writable(tmp_path)


def test_a_file_without_end_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "identity.json").symlink_to("/dev/zero")
    with pytest.raises(NotEnrolled, match="is damaged"):
        identities.load(tmp_path)


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    identities.path(tmp_path).mkdir()

    with pytest.raises(NotEnrolled, match="run this with sudo"):
        identities.load(tmp_path)


def test_its_repr_hides_the_token() -> None:
    assert TOKEN not in repr(identity())
    assert TOKEN not in str(identity())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://pisync.example.org", "https://pisync.example.org"),
        ("https://pisync.example.org/", "https://pisync.example.org"),
        ("https://example.org:8443/pisync/", "https://example.org:8443/pisync"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://schule-süd.example", "https://schule-süd.example"),
    ],
)
def test_valid_addresses_are_accepted(url: str, expected: str) -> None:
    assert checked_url(url, insecure_http=False) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pisync.example.org",
        "ftp://x.org",
        "https://",
        "https:///path",
        "https://x.org:port",
        "https://x.org:99999",
        "https://x.org?a=1",
        "https://x.org#a",
        "https://x.org/a b",
        "https://x.org/\n",
        "https://" + "a" * 64 + ".org",
        "https://[::1",
        "https://x..org",
    ],
)
def test_invalid_addresses_are_rejected(url: str) -> None:
    with pytest.raises(RuleError, match="write it as https://"):
        checked_url(url, insecure_http=True)


@pytest.mark.parametrize("url", ["http://pisync.example.org", "http://10.0.0.5", "http://localhost.evil.org"])
def test_plain_http_to_another_machine_needs_a_flag(url: str) -> None:
    with pytest.raises(RuleError, match="--insecure-http"):
        checked_url(url, insecure_http=False)

    assert checked_url(url, insecure_http=True) == url
    with pytest.raises(RuleError, match="--insecure-http"):
        identity(url=url)


@pytest.mark.parametrize("url", ["https://user:pa55@x.org", "https://user:pa55@x.org?a", "https://user@x.org"])
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RuleError) as caught:
        checked_url(url, insecure_http=False)

    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"])
def test_loopback_addresses_are_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["128.0.0.1", "127.0.0.1.example.org", "", "0.0.0.0", "::2"])
def test_other_addresses_may_be_another_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("url", "host"),
    [("https://x.org:8443/a", "x.org"), ("http://[::1]:80", "::1"), ("http://127.0.0.1", "127.0.0.1")],
)
def test_the_host_is_without_port_and_brackets(url: str, host: str) -> None:
    assert identity(url=url).host == host


def test_an_id_is_suggested_from_the_board_the_system_or_at_random() -> None:
    system = "0123456789abcdef0123456789abcdef"

    assert suggested_device_id(Machine(), random_hex=lambda n: "ab" * n) == "pi-abababababab"
    assert suggested_device_id(Machine(system=system)) == "pi-456789abcdef"
    assert suggested_device_id(Machine(board="10000000a1b2c3d4", system=system)) == "pi-0000a1b2c3d4"


def test_further_addresses_are_checked_distinct_and_few(tmp_path: Path) -> None:
    many = [f"https://r{number}.example" for number in range(9)]
    kept = identity().at("https://new.example/", "https://new.example", many[0], *many)
    identities.save(tmp_path, kept)

    assert (kept.url, kept.others) == ("https://new.example", tuple(many[:4]))
    assert identities.load(tmp_path) == kept
    with pytest.raises(RuleError, match="--insecure-http"):
        identity().at("https://new.example", "http://192.0.2.1")
