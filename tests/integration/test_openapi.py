"""The document says what the app does: held by an attack made from it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import schemathesis_hooks
from tests.support.live_receiver import DEVICE, Live, live_receiver

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


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
    attack(live, tmp_path, kind, calls)


def test_no_act_made_from_the_document_is_answered_against_it(tmp_path: Path) -> None:
    (tmp_path / "acts").mkdir()
    with live_receiver(tmp_path / "acts") as live:
        # Which fields of a token go together is said in words alone, so a valid body may be refused.
        calls = [
            "--include-method",
            "POST",
            "--include-method",
            "PATCH",
            "--exclude-checks",
            "positive_data_acceptance",
        ]
        attack(live, tmp_path, "admin", calls)


def attack(live: Live, folder: Path, kind: str, calls: list[str]) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")]
    command += ["run", f"{live.url}/openapi.json", "--checks", "all", *calls]
    command += ["--header", f"Authorization: Bearer {live.secrets[kind]}"]
    environ = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.integration.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
        schemathesis_hooks.DEVICE_VARIABLE: DEVICE,
        "NO_COLOR": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
