"""A missing optional library is named with its extra, in one line."""

import subprocess
import sys

import pytest

WORKER = """
import runpy, sys
sys.modules[{hidden!r}] = None
sys.argv[1:] = ["worker", "--once", "--database-url", "postgresql://127.0.0.1:1/none", "--amqp-url", "amqp://h/"]
runpy.run_module("pisync_receiver", run_name="__main__")
"""
ALERTS = """
import sys
sys.modules["apprise"] = None
from pisync_receiver.alerts.services import AppriseService
from pisync_receiver.errors import MissingExtra
try:
    AppriseService("json://127.0.0.1:1/", 1)
except MissingExtra as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("program", "hidden", "extra"),
    [(WORKER, "psycopg", "postgres"), (WORKER, "aio_pika", "broker"), (ALERTS, "apprise", "alerts")],
)
def test_a_missing_library_is_named_with_its_extra(program: str, hidden: str, extra: str) -> None:
    code = program.format(hidden=hidden)
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{hidden} is not installed" in line
    assert repr(extra) in line
    assert "pip install" not in line
