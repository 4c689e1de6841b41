"""The rules and the dashboard name only metrics that a real Prometheus scrapes from a real receiver."""

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import ReceiverProcess, free_port, wait_until
from tests.support.services import installed
from tests.worker.database import WorkerDatabase

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "receiver/deploy"


def named() -> dict[str, set[str]]:
    """Metrics by the file that names them."""
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    dashboard = json.loads((DEPLOY / "grafana/pisync.json").read_text())
    expressions = {
        "rules.yml": [rule["expr"] for group in rules["groups"] for rule in group["rules"]],
        "pisync.json": [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]],
    }
    return {file: set(re.findall(r"\bpisync_\w+", " ".join(texts))) for file, texts in expressions.items()}


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml"), ("check", "config", "prometheus.yml")],
)
def test_promtool_accepts_the_files(arguments: tuple[str, ...], tmp_path: Path) -> None:
    for file in (DEPLOY / "prometheus").iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "token").write_text("psv_")
    command = [installed("promtool"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped a receiver, which is in use."""
    found = installed("prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    own = free_port()
    with (
        fresh_database() as url,
        ReceiverProcess(folder / "receiver", database_url=url) as receiver,
    ):
        use(receiver)
        place_consumer(url)
        (folder / "token").write_text(receiver.admin_token("viewer"))
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (scraped,) = config["scrape_configs"]
        scraped["static_configs"] = [{"targets": [f"127.0.0.1:{receiver.port}"]}]
        shutil.copy(DEPLOY / "prometheus/rules.yml", folder)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        flags = [
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{own}",
        ]
        with (folder / "prometheus.log").open("w") as log:
            process = subprocess.Popen([found, *flags], stdout=log, stderr=log, cwd=folder)
        try:
            address = f"http://127.0.0.1:{own}"
            wait_until(lambda: has_scraped(address) or process.poll() is not None, "the lag was scraped")
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            yield address
        finally:
            process.kill()
            process.wait()


def use(receiver: ReceiverProcess) -> None:
    """Let a device of a site fail three times."""
    code = receiver.enrollment_code("--site", "Nakuru")
    enrolled = httpx.post(receiver.url + "/api/enroll", json={"code": code, "device_id": "pibook-1"}).json()
    for minute in range(3):
        headers = {"Authorization": f"Bearer {enrolled['token']}", "Idempotency-Key": uuid.uuid4().hex}
        report = {
            "device_id": "pibook-1",
            "timestamp": f"2026-11-23T10:0{minute}:00Z",
            "total_files_synced": 0,
            "total_errors": 1,
            "internet_speed": 1,
        }
        assert httpx.post(receiver.url + "/api/sync-event", json=report, headers=headers).status_code == 201


def place_consumer(url: str) -> None:
    """Store a position, as a worker does when it starts."""
    database = WorkerDatabase(url)
    database.rows("INSERT INTO positions (consumer, event_id, moved_ms) VALUES ('rabbitmq', 0, 0)")
    database.close()


def ask(address: str, path: str) -> Any:
    return httpx.get(address + path, trust_env=False).json()["data"]


def has_scraped(address: str) -> bool:
    try:
        return bool(ask(address, "/api/v1/query?query=pisync_worker_lag_events")["result"])
    except (httpx.TransportError, ValueError):
        return False


@needs_postgres
def test_every_metric_that_a_rule_or_a_panel_names_exists(prometheus: str) -> None:
    there = set(ask(prometheus, "/api/v1/label/__name__/values"))
    wanted = named()
    assert all(wanted.values())
    assert {file: sorted(names - there) for file, names in wanted.items()} == {"rules.yml": [], "pisync.json": []}


@needs_postgres
def test_every_rule_is_loaded_and_evaluated(prometheus: str) -> None:
    (group,) = ask(prometheus, "/api/v1/rules")["groups"]
    wait_until(lambda: all(rule["health"] == "ok" for rule in rules_of(prometheus)), "every rule was evaluated")
    assert len(group["rules"]) == 13


def rules_of(address: str) -> list[dict[str, Any]]:
    (group,) = ask(address, "/api/v1/rules")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules
