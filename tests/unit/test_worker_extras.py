"""Only those who use a broker, alerts or PostgreSQL install what these need, and who lacks it is told what."""

import subprocess
import sys

import pytest

CALL = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
from pisync_receiver.cli import main
sys.exit(main(["worker", "--once", "--database-url", "postgresql://127.0.0.1:1/none"]))
"""


@pytest.mark.parametrize(
    ("hidden", "extra", "variables"),
    [
        ("psycopg", "postgres", {}),
        ("greenlet", "postgres", {}),
        ("aio_pika", "broker", {"PISYNC_RECEIVER_AMQP_URL": "amqp://127.0.0.1:1/"}),
        ("apprise", "alerts", {"PISYNC_RECEIVER_ALERT_URLS": "json://127.0.0.1:1/"}),
    ],
)
def test_a_missing_library_is_named_with_its_extra(hidden: str, extra: str, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL.format(hidden=[hidden])], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{hidden} is not installed" in done.stderr
    assert f"pip install 'pisync[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
