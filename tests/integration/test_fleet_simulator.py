"""The fleet simulator finishes, counts right, and notices what is missing."""

import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fleet.cloud import check, make_devices
from pisync_receiver.store import Store
from pisync_receiver.store.sqlite import open_store
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.stores.made import batch, event, send

ROOT = Path(__file__).parents[2]


def simulate(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = ["scripts/simulate-fleet", "--window", "1s", "--json", str(folder / "result.json"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads((folder / "result.json").read_text())


def test_a_receiver_that_refuses_most_gets_everything_in_the_end(tmp_path: Path) -> None:
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
def test_what_a_database_lacks_is_counted(tmp_path: Path, lost: list[int]) -> None:
    path = tmp_path / "receiver.db"
    devices = make_devices(path, 2, progress=lambda done: None)
    with closing(open_store(path)) as store:
        fill(store, devices[0].name, [])
        fill(store, devices[1].name, lost)
    found = check(path, devices, 5)
    assert (found.events, found.missing, found.duplicates) == (10 - len(lost), len(lost), 0)


def fill(store: Store, device: str, lost: list[int]) -> None:
    send(store, batch([event(seq) for seq in range(1, 6) if seq not in lost], device=device))
