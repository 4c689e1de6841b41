"""Apps of other users, and in a container, under the rights that the service gives its folder."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pisync_agent.outbox.reader import OutboxReader
from tests.integration.test_group_members import AGENT, MEMBER, OTHER, Device
from tests.support.processes import DEADLINE_SECONDS, wait_until
from tests.support.services import missing, root

# What docs/apps.md says of containers: the folder is mounted, and the user has the number of the agent's group.
CONTAINER: Final = """
mount --make-rprivate /
mkdir -p {inside}/folder && touch {inside}/agent.sock
mount --bind {home} {inside}/folder
mount --bind {home}/agent.sock {inside}/agent.sock
exec setpriv --reuid {user} --regid {user} --groups {group} {python} -c '{program}' {inside}
"""
PROGRAM: Final = """
import os, socket, sys
inside = sys.argv[1]
def record(path):
    with socket.socket(socket.AF_UNIX) as agent:
        try:
            agent.connect(path)
            agent.sendall(b"{\\"do\\": \\"record\\", \\"events\\": [{\\"type\\": \\"note.taken\\"}]}\\n")
            return agent.makefile().readline().strip()
        except OSError as error:
            return type(error).__name__
for _ in sys.stdin:
    print(record(f"{inside}/folder/agent.sock"), record(f"{inside}/agent.sock"), flush=True)
with open(f"{inside}/folder/spool/.notes", "w") as file:
    os.umask(0o022)
    file.write("{\\"type\\": \\"note.taken\\"}\\n")
os.rename(f"{inside}/folder/spool/.notes", f"{inside}/folder/spool/notes.ndjson")
for name in ("outbox.db", "identity.json"):
    print(name, os.access(f"{inside}/folder/{name}", os.R_OK), flush=True)
"""


@pytest.fixture
def device() -> Iterator[Device]:
    """A device whose service runs, with rights as the package makes them."""
    root("acting as several users")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Device(Path(folder))
        if not made.python:
            missing("no other user can run the agent from here")
        (made.home / "identity.json").write_text("{}")
        made.own()
        made.start()
        wait_until((made.home / "spool").exists, "the spool folder is there")
        try:
            yield made
        finally:
            made.stop()


def last_seq(device: Device) -> int:
    with OutboxReader(device.home) as reader:
        return reader.state().last_seq


def write_as(device: Device, user: int, name: str, *, umask: int = 0o022, group: int = AGENT) -> int:
    """Rename a file into the spool folder as an app of another user; return the exit code."""
    line = json.dumps({"type": "note.taken", "data": {"name": name}})
    script = f"cd {device.home}/spool && echo '{line}' > .{name} && mv .{name} {name}"
    done = subprocess.run(
        ["sh", "-c", script], user=user, group=user, extra_groups=[group], umask=umask, stderr=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    return done.returncode


def test_members_of_the_group_spool_and_others_do_not(device: Device) -> None:
    spool = device.home / "spool"
    assert write_as(device, MEMBER, "a.ndjson") == 0
    wait_until(lambda: last_seq(device) == 1, "the file is taken")
    assert write_as(device, MEMBER, "b.ndjson", umask=0o027) == 0
    wait_until(lambda: last_seq(device) == 2, "the folder gives its group to new files")
    assert write_as(device, OTHER, "c.ndjson", group=OTHER) != 0

    assert write_as(device, MEMBER, "d.ndjson", umask=0o077) == 0
    assert write_as(device, MEMBER, "e.ndjson") == 0
    wait_until(lambda: last_seq(device) == 3, "a file without rights stops no other")
    assert [path.name for path in spool.iterdir()] == ["d.ndjson"]
    taken = subprocess.run(
        ["rm", "-f", str(spool / "d.ndjson")], user=OTHER, group=OTHER, extra_groups=[AGENT], capture_output=True,
        check=False,
    )  # fmt: skip
    assert taken.returncode != 0, "only its owner removes a file"
    (spool / "d.ndjson").chmod(0o640)
    wait_until(lambda: last_seq(device) == 4, "given the right, it is taken at once")


def test_an_app_in_a_container_records_across_a_restart(device: Device, tmp_path: Path) -> None:
    inside = device.home.parent / "inside"
    script = CONTAINER.format(
        home=device.home, inside=inside, user=MEMBER, group=AGENT, python=device.python, program=PROGRAM
    )
    command = ["unshare", "--mount", "sh", "-ec", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as app:
        assert app.stdin is not None
        assert app.stdout is not None

        def record() -> str:
            assert app.stdin is not None
            assert app.stdout is not None
            app.stdin.write("\n")
            app.stdin.flush()
            return app.stdout.readline().strip()

        first = record()
        device.stop()
        device.start()
        second = record()
        rest, _ = app.communicate(timeout=DEADLINE_SECONDS)

    assert first == '{"seqs":[1]} {"seqs":[2]}'
    assert second == '{"seqs":[3]} ConnectionRefusedError', "a mounted socket leads nowhere after a restart"
    assert rest.splitlines() == ["outbox.db False", "identity.json False"]
    wait_until(lambda: last_seq(device) == 4, "the spool file is taken")
