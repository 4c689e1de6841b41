"""A card that fails every write, as real ext4 does: the log and `status` while the service goes on."""

import subprocess
from pathlib import Path

import pytest

from tests.support.ext4 import ext4_disk
from tests.support.processes import AgentProcess, wait_until


@pytest.mark.parametrize("reads", [True, False], ids=["read-only", "dead"])
def test_a_failing_card_is_reported(tmp_path: Path, reads: bool) -> None:
    """The file system turns read-only after an error, or answers everything with EIO."""
    with ext4_disk(tmp_path) as disk:
        agent = AgentProcess(disk.path / "device", environ={"WATCHDOG_USEC": "600000"})
        agent.log_file = tmp_path / "log"
        with agent:
            agent.start()
            agent.record()
            if reads:
                subprocess.run(["mount", "-o", "remount,abort", str(disk.path)], check=True)
            else:
                disk.cut_power()
            assert agent.run("record", "note.taken").returncode == 5
            wait_until(lambda: "recording fails" in agent.log(), "the service notices")
            found = agent.json("status", code=5)
            text = " ".join(agent.run("status").stdout.split())
            refused = agent.run("record", "note.taken")
            again = agent.json("status", code=5)

            assert found["write_fault"]["code"] == "store_unusable"
            assert found["write_fault"]["fault"] == ("read_only" if reads else "disk_failed")
            assert again["write_fault"]["since_ms"] == found["write_fault"]["since_ms"]
            assert again["write_fault"]["count"] > found["write_fault"]["count"]
            assert "recording fails since" in text
            assert found["waiting"] == (1 if reads else None)
            assert bool(found["outbox_fault"]) is not reads
            assert (refused.returncode, refused.stdout) == (5, "")
            assert not agent.ended, "a restart would not mend the card"
            assert agent.log().count("recording fails") == 1
