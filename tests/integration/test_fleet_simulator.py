"""The fleet simulator finishes, counts correctly, and notices missing events."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fleet.cloud import check
from fleet.devices import Device
from tests.support.postgres import fresh_database, needs_postgres

ROOT = Path(__file__).parents[2]
DEVICES = [Device(number=number, token="") for number in range(2)]


def simulate(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = ["scripts/simulate-fleet", "--window", "1s", "--json", str(folder / "result.json"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads((folder / "result.json").read_text())


def test_a_receiver_that_refuses_most_requests_gets_every_event(tmp_path: Path) -> None:
    code, result = simulate(
        tmp_path, "--devices", "200", "--speed", "200", "--serve", "--max-waiting 2", "--svg", str(tmp_path / "x.svg")
    )
    assert code == 0
    assert result["found"] == {"events": 10_000, "missing": 0, "duplicates": 0}
    assert "503" in result["answers by status"]
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


@needs_postgres
def test_two_receivers_on_postgresql(tmp_path: Path) -> None:
    with fresh_database() as url:
        code, result = simulate(tmp_path, "--devices", "100", "--receivers", "2", "--database-url", url)
    assert (code, result["found"]["events"], result["found"]["missing"]) == (0, 5_000, 0)


@pytest.mark.parametrize("lost", [[], [3], [1, 2, 5]])
def test_missing_events_are_counted(lost: list[int]) -> None:
    stored = [("pibook-000000", seq) for seq in range(1, 6)]
    stored += [("pibook-000001", seq) for seq in range(1, 6) if seq not in lost]

    found = check(lines(stored), DEVICES, 5)

    assert (found.events, found.missing, found.duplicates) == (10 - len(lost), len(lost), 0)


def test_duplicates_are_counted() -> None:
    found = check(lines([("pibook-000000", 1), ("pibook-000000", 1), ("pibook-000001", 1)]), DEVICES, 1)

    assert (found.events, found.missing, found.duplicates) == (3, 0, 1)


def lines(stored: list[tuple[str, int]]) -> list[bytes]:
    return [json.dumps({"device_id": device_id, "seq": seq}).encode() for device_id, seq in stored]
