"""The consumer in the documentation works and drops repetitions."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.postgres import needs_postgres
from tests.support.processes import run_worker, wait_until
from tests.worker.broker import URL, Queue, needs_rabbitmq
from tests.worker.database import WorkerDatabase

pytestmark = [needs_postgres, needs_rabbitmq]

DOCUMENT = Path(__file__).parents[2] / "docs/events.md"


def test_documented_consumer_handles_each_event_once(database: WorkerDatabase, queue: Queue, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    database.add_events([("pibook-1", "s1", seq) for seq in range(1, 6)])
    chosen = {
        "database_url": database.url,
        "amqp_url": URL,
        "amqp_exchange": queue.name,
        "amqp_queue": queue.name,
    }
    for again in ((), ("--from", "2")):
        assert run_worker("--once", *again, **chosen).returncode == 0
    database.add_events([("pibook-2", "s2", 1)])
    assert run_worker("--once", **chosen).returncode == 0

    printed = tmp_path / "printed"
    with printed.open("w") as out:
        consumer = subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | {"AMQP_URL": URL, "QUEUE": queue.name}, stdout=out
        )
        try:
            wait_until(lambda: "pibook-2" in printed.read_text() or consumer.poll() is not None, "all are read")
        finally:
            consumer.kill()
            consumer.wait()

    assert printed.read_text().splitlines() == [
        *(f"pibook-1 {seq} video.watched" for seq in range(1, 6)),
        "pibook-2 1 video.watched",
    ]
