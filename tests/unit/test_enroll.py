"""`pisync enroll`: which id is requested, and what becomes of the identity a device has already."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pisync_agent import identity as identities
from pisync_agent.commands.cli import main
from pisync_agent.commands.enroll import current_identity
from pisync_agent.commands.usage import become_owner
from pisync_agent.enrollment.enrolling import enroll_device
from pisync_agent.enrollment.machine import Machine, read_machine
from pisync_agent.enrollment.state import EnrollmentState, note_state, state_of
from pisync_agent.errors import AlreadyEnrolled, NotEnrolled, Refused, StoreUnusable, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.outbox.models import DEVICE
from pisync_common.errors import RuleError
from pisync_receiver.api.enrollment import normalized
from tests.support.outboxes import deliver, events, opened
from tests.support.services import root
from tests.support.small_disk import small_disk

URL = "https://r.example"
CODE = "K7MQ-2XPD-9RTA-WW4Z"
HERE = Machine(board="10000000a1b2c3d4", system="0123456789abcdef0123456789abcdef")
OWN = "pi-0000a1b2c3d4"


class Receiver:
    """Gives out identities, or refuses some ids."""

    def __init__(
        self, *, refused: tuple[str | None, ...] = (), url: str = URL, problem: str | None = None, lost: int = 0
    ) -> None:
        self.asked: list[str | None] = []
        self._refused = refused
        self._url = url
        self._problem = problem
        self._lost = lost

    def __call__(self, device_id: str | None) -> Identity:
        self.asked.append(device_id)
        if device_id in self._refused or "*" in self._refused:
            raise Refused("no", kind="auth", problem=self._problem)
        if self._lost:
            self._lost -= 1
            raise Unreachable("the answer was lost", kind="timeout")
        return Identity(url=self._url, device_id=device_id or "given", token=f"psd_{len(self.asked)}")


def enroll(
    folder: Path,
    receiver: Callable[[str | None], Identity],
    *,
    url: str = URL,
    device_id: str | None = None,
    again: bool = False,
    new_device: bool = False,
    ca: bytes | None = None,
    here: Machine = HERE,
) -> Identity:
    current = identities.load(folder)
    return enroll_device(
        folder, url, ask=receiver, here=here, current=current, device_id=device_id, again=again,
        new_device=new_device, ca=ca,
    )  # fmt: skip


def test_a_named_id_is_requested_and_no_other(tmp_path: Path) -> None:
    receiver = Receiver(refused=("mine",))
    with pytest.raises(Refused):
        enroll(tmp_path, receiver, device_id="mine")

    assert receiver.asked == ["mine"]
    assert identities.load(tmp_path) is None


def test_a_proposed_id_that_is_refused_is_given_up(tmp_path: Path) -> None:
    receiver = Receiver(refused=(OWN,))

    assert enroll(tmp_path, receiver).device_id == "given"
    assert receiver.asked[-1] is None
    assert identities.load(tmp_path) is not None


def test_a_taken_id_is_followed_by_an_id_that_is_the_same_after_a_lost_answer(tmp_path: Path) -> None:
    """Only the same code with the same id gets a lost answer again: the receiver must not choose the id."""
    receiver = Receiver(refused=(OWN,), problem="device_id_taken", lost=1)
    with pytest.raises(Unreachable):
        enroll(tmp_path, receiver)

    given = enroll(tmp_path, receiver)
    assert receiver.asked == [OWN, given.device_id, given.device_id]
    assert given.device_id not in (OWN, None, "given")


def test_a_random_proposal_is_the_same_after_a_lost_answer(tmp_path: Path) -> None:
    receiver = Receiver(lost=1)
    with pytest.raises(Unreachable):
        enroll(tmp_path, receiver, here=Machine())

    given = enroll(tmp_path, receiver, here=Machine())
    assert receiver.asked == [given.device_id] * 2
    assert sorted(each.name for each in tmp_path.iterdir()) == [identities.FILE]


def test_copies_of_a_card_that_proposed_an_id_propose_ids_of_their_own(tmp_path: Path) -> None:
    """With one code, the same id would be let in again: two devices would become one."""
    receiver = Receiver(lost=1)
    with pytest.raises(Unreachable):
        enroll(tmp_path, receiver)
    enroll(tmp_path, receiver, here=Machine(board="10000000ffff0001"))

    assert receiver.asked == [OWN, "pi-0000ffff0001"]


@pytest.mark.parametrize("content", [b"", b"..", b"\xff", b"a b"])
def test_a_damaged_proposal_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / identities.PROPOSAL_FILE).write_bytes(content)
    receiver = Receiver()
    enroll(tmp_path, receiver)

    assert receiver.asked[0] is not None
    assert receiver.asked[0].startswith("pi-")


@pytest.mark.parametrize("enrolled", [False, True])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_the_code_is_kept_where_the_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enrolled: bool, failing: str
) -> None:
    if enrolled:
        enroll(tmp_path, Receiver(), device_id="mine")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    receiver = Receiver()

    def fails(*arguments: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fails)
        with pytest.raises(StoreUnusable, match="the code was not used"):
            enroll(tmp_path, receiver, device_id="mine")

    assert receiver.asked == []
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_the_code_is_kept_where_the_disk_has_no_room(tmp_path: Path) -> None:
    receiver = Receiver()
    with small_disk(tmp_path, kinds=("tmpfs",), size=64 * 1024) as disk:
        (disk / "others").write_bytes(bytes(56 * 1024))
        with pytest.raises(StoreUnusable, match="the code was not used"):
            enroll(disk / "home", receiver, device_id="mine", ca=bytes(8192))

    assert receiver.asked == []


def test_the_code_is_kept_where_the_identity_cannot_be_replaced(tmp_path: Path) -> None:
    identities.path(tmp_path).mkdir()
    receiver = Receiver()
    with pytest.raises((StoreUnusable, NotEnrolled)):
        enroll(tmp_path, receiver, device_id="mine")

    assert receiver.asked == []


def test_the_named_authority_is_copied(tmp_path: Path) -> None:
    given = enroll(tmp_path, Receiver(), device_id="mine", ca=b"PEM")

    assert given.ca_file is not None
    assert Path(given.ca_file).read_bytes() == b"PEM"


def test_a_device_keeps_its_id(tmp_path: Path) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    receiver = Receiver()

    assert enroll(tmp_path, receiver, url=f"{URL}/").device_id == "mine"
    assert receiver.asked == ["mine"]


@pytest.mark.parametrize(
    "url",
    [
        *("", "https://", "https:", "https:///", "r.example", "ftp://r.example", "https://r.example?a=1"),
        *("https://192.168.1.256", "https://10.0.0.999", "https://1.2.3", "https://[::1", "https://[v1.x]"),
        *("https://[::g]", "https://a..b", "https://.b", "https://-", "https://r.example:0", "https://r.example:99999"),
        *("https://r.example:x", "https://r .example", "https://r.example/a b", "https://r.example\n"),
        *("https://r\x00.example", "https://r.example/\x7f", "https://☕.example", "https://ｐisync.example"),
        *("https://user:secret@r.example", "https://user@r.example", "https://" + "a" * 300, "https://a%.b"),
        *("https://" + ".".join(["a" * 60] * 5), "https://１９２.168.1.1", "https://r.example:１", "https://\ud800.b"),
    ],
)
def test_an_address_that_cannot_be_used_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    code = main(["enroll", url, "--code", CODE, "--home", str(tmp_path)])

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "receiver" in line
    assert "secret" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "code",
    [
        *("", " ", "---", "☕", "K7QP_2M4X", "K7QP\x00", "K" * 129, "\ud800", "(code)", "abc", CODE[:-1], CODE + "7"),
        CODE.replace("K", "U"),
    ],
)
def test_what_is_no_code_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str) -> None:
    assert main(["enroll", URL, f"--code={code}", "--home", str(tmp_path)]) == 2
    assert "not an enrollment code" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        "k7mq-2xpd-9rta-ww4z",
        " K7MQ 2XPD 9RTA WW4Z ",
        "K7MQ2XPD9RTAWW4Z",
        "K7MQ–2XPD—9RTA\u00a0WW4Z",
        "Ｋ7MQ-2XPD-9RTA-WW4Z",
    ],
)
def test_a_code_is_taken_however_it_is_typed(typed: str) -> None:
    assert normalized(identities.checked_code(typed)) == "K7MQ2XPD9RTAWW4Z"


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\n!\n", b"\xff\x00"])
def test_an_unusable_ca_file_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    file, home = tmp_path / "ca.pem", tmp_path / "home"
    if content is not None:
        file.write_bytes(content)
    for name in (str(file), str(tmp_path), "~no-such-user/ca.pem", "a\0b"):
        assert main(["enroll", URL, "--code", CODE, "--home", str(home), "--ca", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the code was not used" in line
    assert not home.exists()


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
    with pytest.raises(AlreadyEnrolled, match="--again"):
        enroll(tmp_path, receiver, url=url, device_id=device_id)
    assert receiver.asked == []

    enroll(tmp_path, receiver, url=url, device_id=device_id, again=True)
    kept = identities.load(tmp_path)
    assert kept is not None
    assert (kept.url, kept.device_id) == (url, device_id or "mine")


def test_a_damaged_identity_can_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identities.path(tmp_path).write_text("{")

    assert current_identity(tmp_path) is None
    assert "damaged" in capsys.readouterr().err
    enroll_device(tmp_path, URL, ask=Receiver(), here=HERE, current=None, device_id="mine")
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
        enroll(tmp_path, away)

    assert len(wanted) == 1


def test_an_enrollment_settles_what_an_enrollment_file_met_with(tmp_path: Path) -> None:
    note_state(tmp_path, EnrollmentState(kind="invalid", detail="the file cannot be used"))
    enroll(tmp_path, Receiver())

    assert state_of(tmp_path, HERE) == EnrollmentState(kind="enrolled")


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreUnusable, NotEnrolled)):
        enroll(tmp_path / "file" / "home", Receiver(), device_id="mine")


def test_root_becomes_the_owner_of_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root("becoming another user")
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


# A device that has, or had, an id keeps it


def enroll_somewhere(folder: Path, *, here: Machine = HERE) -> None:
    enroll(folder, Receiver(), device_id="mine", here=here)


def deliver_as(folder: Path, device_id: str | None) -> None:
    """Record and deliver an event, under an id that is noted, or as an earlier version did."""
    with contextlib.closing(opened(folder)) as outbox:
        outbox.append(events(1))
        deliver(outbox, 1)
        if device_id is not None:
            outbox.set_note(DEVICE, device_id)


def test_again_at_another_address_keeps_the_id_or_stops(tmp_path: Path) -> None:
    enroll_somewhere(tmp_path)
    receiver = Receiver(url="https://new.example", refused=("mine",), problem="device_id_taken")
    with pytest.raises(Refused, match="--new-device"):
        enroll(tmp_path, receiver, url="https://new.example", again=True)

    assert receiver.asked == ["mine"]
    kept = identities.load(tmp_path)
    assert kept is not None
    assert (kept.url, kept.device_id) == (URL, "mine")
    assert enroll(tmp_path, receiver, url="https://new.example", new_device=True).device_id == OWN


@pytest.mark.parametrize("noted", ["mine", None])
def test_a_lost_identity_does_not_become_another_device(tmp_path: Path, noted: str | None) -> None:
    deliver_as(tmp_path, noted)
    expected = noted or OWN
    receiver = Receiver(refused=(expected,), problem="device_id_taken")
    with pytest.raises(Refused, match="--new-device"):
        enroll(tmp_path, receiver)
    assert receiver.asked == [expected]

    assert enroll(tmp_path, Receiver()).device_id == expected


def test_a_new_device_has_another_id_even_on_the_same_board(tmp_path: Path) -> None:
    enroll(tmp_path, Receiver())
    given = enroll(tmp_path, Receiver(), new_device=True)

    assert given.device_id.startswith("pi-")
    assert given.device_id != OWN


def test_a_card_from_another_machine_needs_a_decision(tmp_path: Path) -> None:
    enroll_somewhere(tmp_path, here=Machine(board="10000000ffff0001"))
    receiver = Receiver()
    for again in (False, True):
        with pytest.raises(AlreadyEnrolled, match="--moved"):
            enroll(tmp_path, receiver, again=again)
    assert receiver.asked == []

    assert enroll(tmp_path, receiver, new_device=True).device_id == OWN


def test_a_moved_card_keeps_its_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enroll_somewhere(tmp_path, here=Machine(board="10000000ffff0001", system="f" * 32))

    assert main(["enroll", "--moved", "--home", str(tmp_path)]) == 0
    assert "mine" in capsys.readouterr().out
    kept = identities.load(tmp_path)
    assert kept is not None
    assert (kept.device_id, kept.machine) == ("mine", read_machine().fingerprint)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "needs the receiver's URL"),
        ((URL,), 2, "--code"),
        (("--code", CODE), 2, "URL"),
        ((URL, "--code", "abc"), 2, "it has 3 characters"),
        (("http://192.0.2.1", "--code", CODE), 2, "--insecure-http"),
        ((URL, "--code", CODE, "--also", "ftp://r.example"), 2, "ftp://r.example"),
        ((URL, "--code", CODE, "--also", "http://192.0.2.1"), 2, "--insecure-http"),
        ((URL, "--code", CODE, "--device-id", "a b"), 2, "device_id"),
        (("--moved",), 4, "no identity to keep"),
        (("--moved", URL, "--code", CODE, "--new-device"), 2, "--moved keeps the identity"),
    ],
)
def test_wrong_inputs_are_named_before_any_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert main(["enroll", *arguments, "--home", str(tmp_path)]) == code
    assert said in capsys.readouterr().err
    assert identities.load(tmp_path) is None
