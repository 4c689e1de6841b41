"""The consumer that the documentation shows works, and drops what comes twice."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.receiver_process import wait_until
from tests.support.worker.broker import URL, Queue
from tests.support.worker.database import WorkerDatabase
from tests.support.worker.process import once

DOCUMENT = Path(__file__).parents[2] / "docs/events.md"


def test_the_consumer_of_the_documentation(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    database.add_events([("pibook-1", "s1", seq) for seq in range(1, 6)])
    chosen = {
        "database_url": database.url,
        "amqp_url": URL,
        "amqp_exchange": queue.name,
        "amqp_queue": queue.name,
        "message_events": "2",
    }
    for again in ((), ("--from", "2")):
        assert once(*again, **chosen).returncode == 0
    database.add_events([("pibook-2", "s2", 1)])
    assert once(**chosen).returncode == 0

    printed = tmp_path / "printed"
    with printed.open("w") as out:
        consumer = subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | {"AMQP_URL": URL, "QUEUE": queue.name}, stdout=out
        )
        try:
            wait_until(lambda: "pibook-2" in printed.read_text() or consumer.poll() is not None, "the last is read")
        finally:
            consumer.kill()
            consumer.wait()

    assert printed.read_text().splitlines() == [
        *(f"pibook-1 {seq} video.watched" for seq in range(1, 6)),
        "pibook-2 1 video.watched",
    ]
