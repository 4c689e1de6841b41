"""The document says what the app does: held by an attack made from it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import schemathesis_hooks
from tests.support.live_receiver import DEVICE, Live, live_receiver

SUPPORT = Path(schemathesis_hooks.__file__).parent
ROOT = SUPPORT.parent.parent


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("openapi")) as running:
        yield running


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("device", ["--include-method", "POST"]),
        ("admin", ["--include-method", "GET"]),
        ("viewer", ["--include-path", "/api/enroll"]),
    ],
)
def test_no_call_made_from_the_document_is_answered_against_it(
    live: Live, tmp_path: Path, kind: str, calls: list[str]
) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(SUPPORT / "schemathesis.toml")]
    command += ["run", f"{live.url}/openapi.json", "--checks", "all", *calls]
    command += ["--header", f"Authorization: Bearer {live.secrets[kind]}"]
    environ = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
        schemathesis_hooks.DEVICE_VARIABLE: DEVICE,
        "NO_COLOR": "1",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
