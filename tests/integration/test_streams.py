"""Standard streams that are closed, full, abandoned or not UTF-8: no traceback, and an exit code that is true."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess

FULL = "No space left on device"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / "device") as made:
        yield made


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield running


def shell(program: AgentProcess | ReceiverProcess, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of a shell in which `pisync` is the program; no traceback may come of it."""
    script = f'set -o pipefail; pisync() {{ {shlex.join(program.program)} "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", script], env=program.environ(), capture_output=True, text=True, timeout=DEADLINE_SECONDS,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


def recorded(agent: AgentProcess) -> int:
    return int(agent.status()["last_seq"])


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 0, f"pisync: event 1 is stored, but its number cannot be printed ({FULL})\n"),
        (">/dev/full 2>/dev/full", 0, ""),
        ("| true", 0, None),  # `true` may read it before it ends
    ],
)
def test_record_exits_with_0_exactly_if_the_event_is_stored(
    agent: AgentProcess, streams: str, code: int, said: str | None
) -> None:
    done = shell(agent, f"pisync record note.taken {streams}")

    assert done.returncode == code
    assert said is None or done.stderr == said
    assert recorded(agent) == 1
    assert shell(agent, f"pisync record Wrong {streams}").returncode == 2
    assert recorded(agent) == 1


@pytest.mark.parametrize("command", ["status", "queue show 1 --json", "--help"])
def test_what_the_agent_cannot_print_is_an_error_in_one_line(agent: AgentProcess, command: str) -> None:
    agent.record()

    full = shell(agent, f"pisync {command} >/dev/full")
    assert full.returncode == 1
    assert full.stderr == f"pisync: the output cannot be written ({FULL}); what the command did is done\n"
    assert shell(agent, f"pisync {command} >/dev/full 2>&-").returncode == 1
    assert shell(agent, f"pisync {command} | true").stderr == ""
    usual = shell(agent, f"pisync {command}").returncode
    for streams in (">&-", "<&- 2>&-"):
        assert shell(agent, f"pisync {command} {streams}").returncode == usual, streams


@pytest.mark.parametrize("command", ["config", "devices --json", "enrollment create", "--help"])
def test_what_the_receivers_commands_cannot_print_is_an_error_in_one_line(
    receiver: ReceiverProcess, command: str
) -> None:
    full = shell(receiver, f"pisync {command} >/dev/full")

    assert full.returncode == 1
    assert f"pisync-receiver: the output cannot be written ({FULL})" in full.stderr
    assert shell(receiver, f"pisync {command} >/dev/full 2>&-").returncode == 1
    assert "cannot be written" not in shell(receiver, f"pisync {command} | true").stderr
    for streams in (">&-", "<&- 2>&-"):
        assert shell(receiver, f"pisync {command} {streams}").returncode == 0, streams


@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
def test_a_receiver_serves_without_an_output(tmp_path: Path, output: str) -> None:
    """Its output may go to a log file on a full disk."""
    receiver = ReceiverProcess(tmp_path)
    script = f"exec {shlex.join(receiver.program)} serve --port 0 {output}"
    process = subprocess.Popen(["bash", "-c", script], env=receiver.environ(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, b"")
    assert any(b'"started"' in line for line in lines)
    receiver.command("token", "create", "--scope", "viewer")
    process.terminate()
    assert b"Traceback" not in b"".join(lines)
    assert process.wait(DEADLINE_SECONDS) == -signal.SIGTERM
    process.stderr.close()


def test_a_closed_stream_never_becomes_the_outbox(agent: AgentProcess) -> None:
    """The first file that is opened would have the number of standard output."""
    code = "import os; os.closerange(0, 3); from pisync_agent.__main__ import main; main()"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, "record", "a.b"], env=agent.environ(), check=False)

    assert [row["seq"] for row in agent.json("queue", "list")] == [1, 2, 3]


def test_a_pipe_that_does_not_block_gets_everything(agent: AgentProcess) -> None:
    """A parent such as Node.js makes the pipes that it shares with its children non-blocking."""
    agent.command("record", "-", stdin='{"type": "a.b"}\n' * 2000)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    process = subprocess.Popen(
        [*agent.program, "queue", "list", "--limit", "2000", "--json"], env=agent.environ(), stdout=writing
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        assert len(json.load(output)) == 2000
    assert process.wait(DEADLINE_SECONDS) == 0

    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_NONBLOCK)
    process = subprocess.Popen(
        [*agent.program, "record", "-"], env=agent.environ(), stdin=reading, stdout=subprocess.PIPE
    )
    os.close(reading)
    assert process.stdout is not None
    with os.fdopen(writing, "wb", buffering=0) as given:
        for seq in range(2001, 2004):
            given.write(b'{"type": "a.b"}\n')
            assert process.stdout.readline() == b"%d\n" % seq
    assert process.wait(DEADLINE_SECONDS) == 0
    process.stdout.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_every_encoding(agent: AgentProcess, encoding: str) -> None:
    """PYTHONIOENCODING does what a locale of that encoding does; not each machine has such a locale."""
    agent.command("record", "note.taken", "--object", "é наука 🎓")
    environ = agent.environ() | {"PYTHONIOENCODING": encoding}
    for arguments in (("queue", "list"), ("queue", "show", "1"), ("status",), ("config",)):
        for form in ((), ("--json",)):
            done = subprocess.run([*agent.program, *arguments, *form], env=environ, capture_output=True, check=False)
            assert b"Traceback" not in done.stderr, arguments
            if form:
                text = done.stdout.decode(encoding)
                assert arguments[0] != "queue" or "é наука 🎓" in json.dumps(json.loads(text), ensure_ascii=False)


def test_the_receivers_json_is_json_in_every_encoding(receiver: ReceiverProcess) -> None:
    receiver.command("token", "create", "--scope", "viewer", "--label", "é наука 🎓")
    environ = receiver.environ() | {"PYTHONIOENCODING": "latin-1"}
    arguments = [*receiver.program, "token", "list", "--json"]
    done = subprocess.run(arguments, env=environ, capture_output=True, check=True)

    assert "é наука 🎓" in [token["label"] for token in json.loads(done.stdout.decode("latin-1"))]


def test_a_folder_whose_name_is_not_text(tmp_path: Path) -> None:
    place = tmp_path / "donn\udce9es"
    with AgentProcess(place / "device") as agent, ReceiverProcess(place / "receiver") as receiver:
        agent.enroll(receiver.url, receiver.enrollment_code())
        agent.record()
        agent.start("--sync-delay", "0s")
        agent.record()
        assert agent.json("sync", code=(0, 1))["waiting"] == 0
        assert agent.status()["home"] == str(place / "device")
        assert agent.json("config")[0]["value"] == str(place / "device")
        receiver.command("backup", str(place / "copy.db"))
        assert len(receiver.json("devices")) == 1
        agent.stop()
        assert b"donn\\udce9es" in (place / "device.log").read_bytes()
        assert b"Traceback" not in (place / "device.log").read_bytes() + (place / "receiver/receiver.log").read_bytes()


def test_arguments_that_are_not_text_are_wrong_usage(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    for line in (
        r"record a.b --learner $'\xff'", r"record a.b --object $'\xff'", r"record a.b --id $'\xff'",
        r"""record a.b --data $'{"a":"\xff"}'""", r"record $'a.\xff'", r"record a.b --at $'\xff'",
        r"queue show $'\xff'",
        r"config --log-level $'\xff'", r"config --sync-delay $'\xff'", r"config --config $'\xff'",
        "config --config ''", "config --home ''", "record ''", "record a.b --learner ''", "record a.b --data ''",
        "record a.b --at ''", "queue show ''",
    ):  # fmt: skip
        done = shell(agent, f"pisync {line}")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), line
    for line in (
        r"devices --limit $'\xff'", r"events --learner-id $'\xff'", r"token create --scope viewer --label $'\xff'",
        r"config --port $'\xff'", r"device show $'\xff'", "device show ..", "device show ''", "token revoke ..",
        r"devices --url http://192.168.1.256 --token-file /etc/hostname",
        r"devices --url $'http://a\xff' --token-file /etc/hostname",
    ):  # fmt: skip
        done = shell(receiver, f"pisync {line}")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (line, done.stderr)
