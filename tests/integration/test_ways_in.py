"""Every way to record: what an app writes reaches the cloud unchanged, and the documented examples do what they say."""

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from pisync_agent import Recorder
from pisync_agent.outbox.reader import OutboxReader
from pisync_common.unix_socket import LineClient
from tests.support.processes import AgentProcess, ReceiverProcess, free_port, wait_until
from tests.support.proof import Proof
from tests.support.services import installed

ROOT: Final = Path(__file__).parents[2]
OCCURRED: Final = "2026-11-20T09:30:00.125Z"
LEARNERS: Final = {
    "python": "عائشة بنت محمد", "command": "अनिता कुमारी", "http": "Nguyễn Thị Ánh", "spool": "ᚠᛇᚻ 王小明",
    "socket": "O'Neill \"Jo\" <jo@x.org>/7 😀",
}  # fmt: skip
"""By the way in."""


class Device:
    """An agent whose service takes events in every way."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.agent = AgentProcess(home, "--http-port", str(self.port), "--sync-delay", "100ms")
        self.home = home

    def start(self) -> None:
        self.agent.start()
        wait_until((self.home / "http-token").exists, "the token is there")
        wait_until((self.home / "spool").exists, "the spool folder is there")

    def ask(self, path: str, content: object = None) -> Any:
        """Make a request over HTTP; return the answer's content."""
        token = (self.home / "http-token").read_text().strip()
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def put(self, name: str, *events: object) -> None:
        """Rename a file into the spool folder, and wait until the service has taken it."""
        made = self.home / "spool/.writing"
        made.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in events))
        made.rename(self.home / "spool" / name)
        wait_until(lambda: not (self.home / "spool" / name).exists(), "the file is taken")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    made = Device(tmp_path_factory.mktemp("ways") / "device")
    with made.agent:
        made.start()
        yield made


def written(way: str) -> dict[str, Any]:
    learner = LEARNERS[way]
    return {
        "type": "note.taken", "id": f"{way}/{learner}", "learner_id": learner, "object_id": f"book/{learner}",
        "occurred_at": OCCURRED, "data": {"text": learner, "n": 1.5},
    }  # fmt: skip


def record_each_way(device: Device) -> None:
    event = written("python")
    with Recorder(device.home) as recorder:
        recorder.record(event.pop("type"), **event | {"occurred_at": datetime.fromisoformat(OCCURRED)})
    event = written("command")
    device.agent.command(
        "record", event["type"], "--id", event["id"], "--learner", event["learner_id"], "--object", event["object_id"],
        "--at", OCCURRED, "--data", json.dumps(event["data"]),
    )  # fmt: skip
    device.ask("/v1/events", written("http"))
    device.put("notes.ndjson", written("spool"))
    with closing(LineClient(device.agent.socket, timeout=60)) as client:
        client.ask({"do": "record", "events": [written("socket")]})


def test_what_an_app_writes_reaches_the_cloud_unchanged_in_every_way(device: Device, tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path / "receiver") as receiver, closing(Proof(receiver)) as proof:
        device.agent.enroll(receiver.url, receiver.enrollment_code(), "--insecure-http", device_id="pibook-1")
        for _ in range(2):  # a repeat with the same id is stored once
            record_each_way(device)
        device.agent.command("sync")

        stored = {event["learner_id"]: event for event in proof.events("pibook-1")}
        assert proof.completeness("pibook-1")["complete"]
    assert len(stored) == len(LEARNERS)
    for way, learner in LEARNERS.items():
        found = stored[learner] | {"id": stored[learner]["event_id"]}
        assert {name: found[name] for name in written(way)} == written(way), way
    assert device.ask("/v1/status") | {"next_run_in_s": None} == {
        "agent": device.agent.command("--version").split()[-1], "enrolled": True, "waiting": 0, "dead": 0,
        "write_fault": None, "next_run_in_s": None,
    }  # fmt: skip


def test_a_spool_file_is_recorded_once_though_the_service_is_killed(tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    with device.agent:
        device.start()
        made = device.home / "spool/.writing"
        lines = 6000
        made.write_text("".join(json.dumps({"type": "note.taken", "data": {"n": n}}) + "\n" for n in range(lines)))
        made.rename(device.home / "spool/notes.ndjson")
        for _ in range(2):
            wait_for_more(device, lines)
            device.agent.kill()
            device.agent.start()
        wait_until(lambda: not (device.home / "spool/notes.ndjson").exists(), "the file is taken")
        listed = [json.loads(line)["data"]["n"] for line in recorded(device)]

    assert listed == list(range(lines))


def wait_for_more(device: Device, most: int) -> None:
    before = last_seq(device)
    wait_until(lambda: last_seq(device) > min(before, most - 1), "more lines are recorded")


def last_seq(device: Device) -> int:
    with OutboxReader(device.home) as reader:
        return reader.state().last_seq


def recorded(device: Device) -> list[str]:
    """Return the text of every event in the outbox."""
    with OutboxReader(device.home) as reader:
        return [reader.event(seq) or "" for seq in range(1, reader.state().last_seq + 1)]


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/local-protocol.md").read_text(), re.DOTALL)
    return str(found)


@pytest.mark.parametrize(("language", "program"), [("sh", "socat"), ("js", "node"), ("c", "gcc")])
def test_an_example_of_another_language_records(device: Device, tmp_path: Path, language: str, program: str) -> None:
    installed(program)
    source = tmp_path / f"example.{language}"
    source.write_text(example(language))
    command = {"sh": ["sh", str(source)], "js": ["node", str(source)], "c": [str(tmp_path / "example")]}[language]
    if language == "c":
        subprocess.run(["gcc", "-Wall", "-Werror", "-o", command[0], str(source)], check=True)
    last = device.agent.status()["last_seq"]
    environ = os.environ | {"AGENT_SOCKET": str(device.agent.socket)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60)

    assert json.loads(done.stdout) == {"seqs": [last + 1]}


def test_the_socket_says_its_version_and_what_is_wrong(device: Device) -> None:
    with closing(LineClient(device.agent.socket, timeout=60)) as client:
        hello = client.ask({"do": "hello"})["hello"]
        unknown = client.ask({"do": "recrod"})["error"]
        useless = client.ask({"do": "record", "events": {}})["error"]
        bad = client.ask({"do": "record", "events": [{"type": "note.taken", "learner": "s-17"}]})["seqs"][0]

    assert hello == {"protocol": 1, "agent": device.agent.command("--version").split()[-1]}
    assert unknown == {"code": "bad_message", "detail": "unknown message 'recrod'"}
    assert "an array" in useless["detail"]
    assert "unknown field 'learner'" in bad["detail"]
