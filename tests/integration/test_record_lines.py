"""`pisync record -` as a process, with and without the service: what was printed is stored, and nothing is twice."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pisync_agent.outbox.reader import OutboxReader
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, wait_until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / "device") as made:
        yield made


def lines(numbers: Sequence[int], *, size: int = 0) -> bytes:
    found = ({"type": "a.b", "data": {"n": n, "x": "y" * size}} for n in numbers)
    return "".join(json.dumps(line) + "\n" for line in found).encode()


def stored(agent: AgentProcess) -> dict[int, int]:
    """The number of each event, by seq. Fails if one is stored twice."""
    with OutboxReader(agent.home) as reader:
        rows = reader.list_events(0, 1_000_000)
    found = {seq: int(json.loads(body)["data"]["n"]) for seq, body, _ in rows}
    assert len(set(found.values())) == len(found)
    return found


def recording(agent: AgentProcess, *flags: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*agent.program, "record", "-", *flags], env=agent.environ(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip


def go_on_from(message: bytes) -> int:
    assert message.count(b"\n") == 1
    return int(message.split()[-1].replace(b",", b""))


@pytest.mark.parametrize("with_service", [True, False])
def test_a_full_outbox_is_resumed_without_loss(agent: AgentProcess, with_service: bool) -> None:
    """Large and small events, so that a small event behind the first that does not fit would fit."""
    numbers = range(1, 401)
    content = [lines([n], size=40_000 if n % 10 == 0 else 10) for n in numbers]
    done, rooms = 0, iter(["1MiB", "1500KiB", "64MiB"])
    for room in rooms:
        if with_service:
            agent.start("--max-queue", room)
        process = recording(agent, "--max-queue", room)
        out, err = process.communicate(b"".join(content[done:]), DEADLINE_SECONDS)
        found = stored(agent)
        assert [found[int(seq)] for seq in out.split()] == list(numbers[done : done + len(out.split())])
        assert len(found) == done + len(out.split())
        done += len(out.split())
        if room == "64MiB":
            assert (process.returncode, err) == (0, b"")
        else:
            assert process.returncode == 5
            assert go_on_from(err) == len(out.split()) + 1
        agent.stop()
    assert list(stored(agent).values()) == list(numbers)


def test_a_service_that_is_killed_loses_and_doubles_nothing(agent: AgentProcess) -> None:
    agent.start()
    process = recording(agent)
    assert process.stdin is not None
    assert process.stdout is not None
    seqs: list[int] = []
    for first in range(1, 4001, 400):
        process.stdin.write(lines(range(first, first + 400)))
        process.stdin.flush()
        while len(seqs) < first + 199:
            seqs.append(int(process.stdout.readline()))
        agent.kill()
        if first % 800 == 1:
            agent.start()
    process.stdin.close()
    seqs += map(int, process.stdout.read().split())
    assert process.wait(DEADLINE_SECONDS) == 0
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()

    found = stored(agent)
    assert [found[seq] for seq in seqs] == list(range(1, 4001))
    assert len(found) == 4000


def test_a_reader_that_ends_early(agent: AgentProcess, tmp_path: Path) -> None:
    """`| head`, or an app that was killed: some lines are stored whose numbers were never read."""
    (tmp_path / "lines").write_bytes(lines(range(1, 20_001)))
    script = f"{' '.join(agent.program)} record - <{tmp_path}/lines | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=agent.environ(), capture_output=True, check=False)

    assert (done.returncode, done.stdout) == (1, b"1\n")
    following = go_on_from(done.stderr)
    assert list(stored(agent).values()) == list(range(1, following))
    assert following <= 20_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_where_the_message_says(agent: AgentProcess, number: signal.Signals) -> None:
    agent.start()
    process = recording(agent)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lines(range(1, 3001)))
    process.stdin.flush()
    assert process.stdout.readline() == b"1\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)

    assert process.returncode == 130
    found = stored(agent)
    assert list(found) == [1, *map(int, out.split())]
    assert go_on_from(err) == len(found) + 1


@pytest.mark.parametrize("filter", ["cat", "tr '\\0' ' '", "tr '\\0' '['"])
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(agent: AgentProcess, filter: str) -> None:
    script = f"{filter} </dev/zero | {' '.join(agent.program)} record -; exit ${{PIPESTATUS[1]}}"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 500000; {script}"], env=agent.environ(), capture_output=True,
        timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2, b"")
    assert b"line 1: longer than 1,048,576 bytes" in done.stderr


def test_a_lines_number_is_there_before_the_next_is_sent(agent: AgentProcess) -> None:
    """A caller on a pipe that waits for each number, and whose last line has no end."""
    process = recording(agent)
    assert process.stdin is not None
    assert process.stdout is not None
    for n in range(1, 4):
        process.stdin.write(lines([n]))
        process.stdin.flush()
        assert process.stdout.readline() == b"%d\n" % n
    os.write(process.stdin.fileno(), lines([4])[:-1])
    assert process.communicate(timeout=DEADLINE_SECONDS) == (b"4\n", b"")
    wait_until(lambda: process.returncode == 0, "the end")
