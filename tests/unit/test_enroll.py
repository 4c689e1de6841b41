"""`pisync enroll`: which id is requested, and what becomes of the identity a device has already."""

import os
from pathlib import Path

import pytest

from pisync_agent import identity as identities
from pisync_agent.commands.enroll import enroll_device
from pisync_agent.commands.usage import WrongUsage, become_owner
from pisync_agent.errors import NotEnrolled, Refused, StoreUnusable, Unreachable
from pisync_agent.identity import Identity
from pisync_common.errors import RuleError

URL = "https://r.example"


class Receiver:
    """Gives out identities, or refuses some ids."""

    def __init__(self, *, refused: tuple[str | None, ...] = (), url: str = URL) -> None:
        self.asked: list[str | None] = []
        self._refused = refused
        self._url = url

    def __call__(self, device_id: str | None) -> Identity:
        self.asked.append(device_id)
        if device_id in self._refused or "*" in self._refused:
            raise Refused("no", kind="auth")
        return Identity(url=self._url, device_id=device_id or "given", token=f"psd_{len(self.asked)}")


def enroll(
    folder: Path, receiver: Receiver, *, url: str = URL, device_id: str | None = None, again: bool = False
) -> Identity:
    return enroll_device(folder, url, ask=receiver, device_id=device_id, again=again)


def test_a_named_id_is_requested_and_no_other(tmp_path: Path) -> None:
    receiver = Receiver(refused=("mine",))
    with pytest.raises(Refused):
        enroll(tmp_path, receiver, device_id="mine")

    assert receiver.asked == ["mine"]
    assert identities.load(tmp_path) is None


def test_a_proposed_id_that_is_refused_is_given_up(tmp_path: Path) -> None:
    proposed = identities.suggested_device_id()
    receiver = Receiver(refused=(proposed,))

    assert enroll(tmp_path, receiver).device_id == "given"
    assert receiver.asked[-1] is None
    assert identities.load(tmp_path) is not None


def test_a_device_keeps_its_id(tmp_path: Path) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    receiver = Receiver()

    assert enroll(tmp_path, receiver, url=f"{URL}/").device_id == "mine"
    assert receiver.asked == ["mine"]


def test_a_device_refused_under_its_id_does_not_become_another(tmp_path: Path) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    with pytest.raises(Refused):
        enroll(tmp_path, Receiver(refused=("mine",)))

    kept = identities.load(tmp_path)
    assert kept is not None
    assert kept.device_id == "mine"


@pytest.mark.parametrize(("url", "device_id"), [(URL, "other"), ("https://other.example", None)])
def test_another_history_needs_again(tmp_path: Path, url: str, device_id: str | None) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    receiver = Receiver(url=url)
    with pytest.raises(WrongUsage, match="--again"):
        enroll(tmp_path, receiver, url=url, device_id=device_id)
    assert receiver.asked == []

    enroll(tmp_path, receiver, url=url, device_id=device_id, again=True)
    kept = identities.load(tmp_path)
    assert kept is not None
    assert (kept.url, kept.device_id) == (url, device_id or "mine")


def test_a_damaged_identity_can_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identities.path(tmp_path).write_text("{")
    enroll_device(tmp_path, URL, ask=Receiver(), device_id="mine", again=False)

    assert "damaged" in capsys.readouterr().err
    assert identities.load(tmp_path) is not None


def test_an_invalid_id_is_rejected_before_any_request(tmp_path: Path) -> None:
    receiver = Receiver()
    with pytest.raises(RuleError):
        enroll(tmp_path, receiver, device_id="no spaces")

    assert receiver.asked == []


def test_an_unreachable_receiver_is_not_asked_twice(tmp_path: Path) -> None:
    wanted: list[str | None] = []

    def away(device_id: str | None) -> Identity:
        wanted.append(device_id)
        raise Unreachable("no answer", kind="timeout")

    with pytest.raises(Unreachable):
        enroll_device(tmp_path, URL, ask=away, device_id=None, again=False)

    assert len(wanted) == 1


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreUnusable, NotEnrolled)):
        enroll(tmp_path / "file" / "home", Receiver(), device_id="mine")


def test_root_becomes_the_owner_of_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become someone else")
    folder = tmp_path / "home"
    folder.mkdir()
    became: list[tuple[str, object]] = []
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda value, name=name: became.append((name, value)))
    become_owner(folder)
    assert became == []
    os.chown(folder, 4711, 4712)
    become_owner(folder)

    assert became == [("setgroups", []), ("setgid", 4712), ("setuid", 4711)]
    become_owner(tmp_path / "none")
