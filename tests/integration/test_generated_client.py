"""A client that a common generator makes from the receiver's own document works with the receiver."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_receiver import DEVICE, Live, live_receiver

CALLS = """
import sys
from datetime import datetime, timezone
from made.client import AuthenticatedClient
from made.api.devices import get_completeness
from made.api.events import post_events
from made.api.sync_events import post_sync_event, sync_history
from made.models import Batch, Completeness, ProgressEvent, Receipt, SyncEventRecord, SyncEventRequest

url, device_token, admin_token, device_id = sys.argv[1:]
device = AuthenticatedClient(base_url=url, token=device_token, raise_on_unexpected_status=True)
admin = AuthenticatedClient(base_url=url, token=admin_token, raise_on_unexpected_status=True)
at = datetime(2026, 11, 23, 10, tzinfo=timezone.utc)

event = ProgressEvent(seq=1, type_="video.watched", occurred_at=at)
receipt = post_events.sync(client=device, body=Batch(device_id=device_id, stream="s1", events=[event]))
assert isinstance(receipt, Receipt) and (receipt.stored, receipt.watermark) == (1, 1), receipt
gap = ProgressEvent(seq=4, type_="video.watched", occurred_at=at)
receipt = post_events.sync(client=device, body=Batch(device_id=device_id, stream="s1", events=[gap]))
assert receipt.missing == [[2, 3]], receipt
sync_event = SyncEventRequest(
    device_id=device_id, timestamp=at, total_files_synced=2, total_errors=0, internet_speed=1.5
)
record = post_sync_event.sync(client=device, body=sync_event, idempotency_key="k-1")
assert isinstance(record, SyncEventRecord) and record.total_files_synced == 2, record
(listed,) = sync_history.sync(device_id, client=admin, limit=5)
assert listed.id == record.id, listed
complete = get_completeness.sync(device_id, client=admin)
assert isinstance(complete, Completeness) and complete.streams[0].missing == [[2, 3]], complete
"""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    (tmp_path / "receiver").mkdir()
    with live_receiver(tmp_path / "receiver") as running:
        yield running


def run(folder: Path, *command: str) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr


def test_a_generated_client_delivers_and_asks(live: Live, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_bytes(live.client(None).get("/openapi.json").content)
    (tmp_path / "config.yaml").write_text("post_hooks: []\n")
    generator = str(Path(sys.executable).with_name("openapi-python-client"))
    run(
        tmp_path,
        *(generator, "generate", "--path", "openapi.json", "--config", "config.yaml"),
        *("--meta", "none", "--output-path", "made", "--fail-on-warning"),
    )
    secrets = (live.secrets["device"], live.secrets["admin"])
    run(tmp_path, sys.executable, "-c", CALLS, live.url, *secrets, DEVICE)
