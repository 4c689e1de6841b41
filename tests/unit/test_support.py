"""`pisync support`: everything an engineer needs, and no secret, learner or event data, wherever they were planted."""

import base64
import io
import json
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as fuzz_settings
from hypothesis import strategies as st

from pisync_agent.commands import bundle
from pisync_agent.commands.cli import main
from pisync_agent.commands.redaction import MASK, Redactor
from pisync_agent.enrollment.enroll_file import EnrollFile, store_pending
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.service import history
from pisync_common.models import Receipt, Rejection, Stamp

STAMP = Stamp(at_ms=1_700_000_000_000, boot_id="boot", boottime_ms=1, clock_synced=True)
TOKEN = "psd_Xy7" + "k" * 40
OTHER_TOKEN = "psa_Qw9z" + "m" * 30
CODE, PROXY_PASSWORD = "K7QP-2M4X", "hunter2-ünder"
LEARNERS = ("Müller, Anna", 'Jo "Ñ" O\'Neill', "s-1704-4", "amina@school.example", "2024/017", "ليلى حسن")
NOTE, OBJECT, APP_ID = "My father is ill today", "math/g5/secret-video", "app-981-private"
HTTP_TOKEN, PENDING_CODE = "the-token-that-the-school-chose-for-its-apps", "k7mq2xpd9rtaww4z"
PRIVATE = (HTTP_TOKEN, PENDING_CODE, TOKEN, OTHER_TOKEN, CODE, PROXY_PASSWORD, *LEARNERS, NOTE, OBJECT, APP_ID)


def encoded(value: str) -> set[str]:
    raw = value.encode()
    return {
        value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value), quote(value, safe=""), raw.hex(),
        base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("="),
    }  # fmt: skip


def sentence(value: str) -> str:
    """A line that quotes a value in every form."""
    return f"a line about {value}: " + " ".join(sorted(encoded(value)))


class Programs:
    """A folder on PATH with stand-ins for journalctl and systemctl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def write(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    (tmp_path / "journal").write_text("".join(f"2026-11-23 pisync[7]: {sentence(value)}\n" for value in PRIVATE))
    made.write("journalctl", f"echo 'started: pisync 0.3'; cat {tmp_path / 'journal'}")
    made.write("systemctl", "echo ActiveState=active; echo 'Environment=HTTPS_PROXY=http://u:p@h'")
    return made


@pytest.fixture
def home(tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device with private values wherever something could keep them."""
    folder = tmp_path / "device"
    folder.mkdir()
    identity = {"device_id": "pibook-1", "url": "https://r.example", "token": TOKEN}
    (folder / "identity.json").write_text(json.dumps(identity))
    (folder / "http-token").write_text(f"{HTTP_TOKEN}\n")
    store_pending(folder, EnrollFile(receiver="https://r.example", code=PENDING_CODE))
    for value in (LEARNERS[0], CODE, TOKEN):
        (folder / f"{value.replace('/', '_')}.txt").write_text(sentence(value))
    with closing(open_outbox(folder)) as outbox:
        for number, learner in enumerate(LEARNERS):
            outbox.append(
                [
                    NewEvent.create(
                        "note.taken", stamp=STAMP, learner_id=learner, object_id=OBJECT, id=None if number else APP_ID,
                        data={"text": NOTE, "more": [{"name": LEARNERS[-1]}], "state": "failed"},
                    )
                ]
            )  # fmt: skip
        rejected = Rejection(seq=1, code="invalid_event", detail=f"{sentence(LEARNERS[0])} {NOTE}")
        outbox.settle(
            Receipt(device_id="d", stream=outbox.stream, stored=0, duplicates=0, watermark=1, server_time="",
                    rejected=(rejected,)),
            range(1, 2),
        )  # fmt: skip
        failure = {"code": "unreachable", "kind": "portal", "detail": " ".join(map(sentence, PRIVATE))}
        outbox.set_note("last_run", json.dumps({"at_ms": 1, "failure": failure}))
    history.append(folder, {"at_ms": 1_764_000_000_000, "failure": failure})
    settings = tmp_path / "agent.toml"
    settings.write_text(f'# {PROXY_PASSWORD} {CODE}\nhome = "{folder}"\n')
    monkeypatch.setenv("PISYNC_AGENT_CONFIG", str(settings))
    monkeypatch.setenv("HTTPS_PROXY", f"http://kiosk:{quote(PROXY_PASSWORD)}@proxy.example:3128")
    monkeypatch.setenv("PISYNC_AGENT_CODE", CODE)
    monkeypatch.delenv("PISYNC_AGENT_HOME", raising=False)
    return folder


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            Path(member.name).name: io.TextIOWrapper(archive.extractfile(member) or io.BytesIO(), "utf-8").read()
            for member in archive.getmembers()
        }


@pytest.fixture
def files(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    target = tmp_path / "b.tar.gz"

    assert main(["support", "--output", str(target)]) == 0

    shown = capsys.readouterr()
    assert shown.out == f"{target}\n"
    assert target.stat().st_mode & 0o007 == 0
    return unpacked(target)


def test_the_bundle_holds_no_secret_no_learner_and_no_data(files: dict[str, str]) -> None:
    for value in PRIVATE:
        for form in encoded(value):
            assert [name for name, text in files.items() if form in text] == [], (value, form)


def test_the_bundle_holds_what_an_engineer_needs(files: dict[str, str], home: Path) -> None:
    found = {name.removesuffix(".json"): json.loads(text) for name, text in files.items() if name.endswith(".json")}

    assert found["status"]["device_id"] == "pibook-1"
    assert found["status"]["waiting"] == len(LEARNERS) - 1
    assert {row["name"]: row["source"] for row in found["settings"]}["home"].startswith("file ")
    assert found["runs"][0]["failure"]["kind"] == "portal"
    assert found["events"]["by_type"] == {"note.taken dead": 1, "note.taken waiting": len(LEARNERS) - 1}
    assert found["events"]["dead_letters"] == {"invalid_event": 1}
    assert {"outbox.db", "identity.json", "runs.jsonl"} <= {row["name"] for row in found["files"]}
    assert sum(row["name"].startswith("(another file") for row in found["files"]) >= 3
    assert found["unit"] == {"ActiveState": "active", "Environment": f"HTTPS_PROXY=http://{MASK}@h"}
    assert found["about"]["variables"] == ["HTTPS_PROXY", "PISYNC_AGENT_CODE", "PISYNC_AGENT_CONFIG"]
    assert found["disk"]["mount"]
    assert "started: pisync 0.3" in files["journal.txt"]
    assert f"Compared with the outbox: {len(LEARNERS)} events." in files["README.txt"]


def test_a_damaged_outbox_and_missing_programs_leave_the_rest(
    home: Path, tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "outbox.db").write_bytes(b"not a database" * 1000)
    for name in ("journalctl", "systemctl"):
        (programs.folder / name).unlink()
    monkeypatch.setenv("PATH", str(programs.folder))

    assert main(["support", "--output", str(tmp_path / "b.tar.gz")]) == 0

    files = unpacked(tmp_path / "b.tar.gz")
    assert json.loads(files["status.json"])["outbox_fault"]["fault"] == "damaged"
    assert json.loads(files["about.json"])["pisync"]
    assert "journalctl: FileNotFoundError" in files["journal.txt"]
    assert TOKEN not in "".join(files.values())


def test_a_program_that_hangs_and_a_long_output_are_bounded(
    home: Path, tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.write("systemctl", "exec sleep 600")
    line = "x y z 0123456789 " * 200
    programs.write("journalctl", f"i=0; while [ $i -lt 3000 ]; do echo '{line}'; i=$((i+1)); done")
    monkeypatch.setattr(bundle, "LIMIT_S", 3.0)

    assert main(["support", "--output", str(tmp_path / "b.tar.gz")]) == 0

    files = unpacked(tmp_path / "b.tar.gz")
    assert "TimeoutExpired" in files["unit.json"]
    assert len(files["journal.txt"].splitlines()) <= 502
    assert sum(map(len, files.values())) < 1 << 20


def test_an_existing_file_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_text("precious")

    assert main(["support", "--output", str(tmp_path / "b.tar.gz")]) == 2
    assert (tmp_path / "b.tar.gz").read_text() == "precious"


def test_no_program_of_the_folder_that_root_is_in_is_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stick, or a folder that every user may write."""
    (tmp_path / "pisync_agent.py").write_text("open('run', 'w')")
    (tmp_path / "json.py").write_text("open('run', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, ""])

    assert main(["support", "--output", "b.tar.gz"]) == 0

    assert not (tmp_path / "run").exists()
    assert json.loads(unpacked(tmp_path / "b.tar.gz")["doctor.json"])["findings"]


# Redaction alone


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("sync: 48 delivered, 2 duplicates in 1.2 s", "sync: 48 delivered, 2 duplicates in 1.2 s"),
        ("main process exited, code=killed, status=9/KILL", "main process exited, code=killed, status=9/KILL"),
        (
            "at /usr/lib/pisync-agent/sync/run.py:88",
            "at /usr/lib/pisync-agent/sync/run.py:88",
        ),
        ("stream 9f3c1a7be2d04c55", "stream 9f3c1a7be2d04c55"),
        ("Authorization: Bearer abc.def", f"Authorization: {MASK}"),
        ('"password": "p w"', f'"password": "{MASK} w"'),
        ("https://u:p@h/x?token=1&b=2", f"https://{MASK}@h/x?{MASK}"),
        ("enroll --code k7qp2m4x", f"enroll --code {MASK}"),
        ("the code K7QP-2M4X-9QRS", f"the code {MASK}"),
        ("eyJhbGciOiJIUzI1NiJ9abc", MASK),
        ("from amina@school.example.", f"from {MASK}"),
    ],
)
def test_patterns_of_secrets_are_removed_and_plain_text_stays(text: str, left: str) -> None:
    assert Redactor().text(text) == left


@fuzz_settings(max_examples=300)
@given(st.text(min_size=1).filter(str.strip), st.text(max_size=30), st.text(max_size=30))
def test_a_known_value_is_found_wherever_it_stands(value: str, before: str, after: str) -> None:
    redactor = Redactor()
    redactor.add(value)

    if len(value) >= 4:
        assert value not in redactor.text(before + value + after).replace(MASK, "")
    elif value.isalnum():
        assert redactor.text(f"learner={value}, {value};") == f"learner={MASK}, {MASK};"


def test_a_short_id_is_removed_as_a_word_only() -> None:
    redactor = Redactor()
    redactor.add("17")

    assert redactor.text("learner=17 and 1700 and 2017") == f"learner={MASK} and 1700 and 2017"
