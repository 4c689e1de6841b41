"""Prometheus sees what the rules and the dashboard ask for: the real one, scraping a real receiver and worker."""

import json
import os
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

from tests.support.ports import free_port
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.receiver_process import ReceiverProcess, wait_until
from tests.support.redis import SERVER as REDIS
from tests.support.redis import needs_redis
from tests.support.worker.process import WorkerProcess

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "receiver/deploy"
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin"
_PARTS = re.compile(r"_(?:bucket|sum|count)$")


def program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed, so neither rules nor metrics were tried with it")
    return found


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
def test_promtool_is_content(arguments: tuple[str, ...], tmp_path: Path) -> None:
    for file in (DEPLOY / "prometheus").iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "token").write_text("psv_")
    done = subprocess.run([program("promtool"), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped a receiver, which has something to tell, and a worker."""
    found = program("prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    own, worker = free_port(), free_port()
    with (
        fresh_database() as url,
        ReceiverProcess(folder / "receiver", "--redis-url", REDIS, database_url=url) as receiver,
        WorkerProcess(folder / "worker.log", database_url=url, metrics_address=f"127.0.0.1:{worker}"),
    ):
        use(receiver)
        (folder / "token").write_text(receiver.admin_token("viewer"))
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for scraped, port in zip(config["scrape_configs"], (receiver.port, worker), strict=True):
            scraped["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
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
            wait_until(lambda: both_up(address) or process.poll() is not None, "both were scraped")
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            yield address
        finally:
            process.kill()
            process.wait()


def use(receiver: ReceiverProcess) -> None:
    code = receiver.enrollment_code()
    enrolled = httpx.post(receiver.url + "/api/enroll", json={"code": code, "device_id": "pibook-1"}).json()
    headers = {"Authorization": f"Bearer {enrolled['token']}", "Idempotency-Key": uuid.uuid4().hex}
    report = {
        "device_id": "pibook-1",
        "timestamp": "2026-11-23T10:00:00Z",
        "total_files_synced": 0,
        "total_errors": 1,
        "internet_speed": 1,
    }
    assert httpx.post(receiver.url + "/api/sync-event", json=report, headers=headers).status_code == 201


def ask(address: str, path: str) -> Any:
    return httpx.get(address + path, trust_env=False).json()["data"]


def both_up(address: str) -> bool:
    try:
        rows = ask(address, "/api/v1/query?query=up")["result"]
    except (httpx.TransportError, ValueError):
        return False
    return [row["value"][1] for row in rows] == ["1", "1"]


@needs_postgres
@needs_redis
def test_every_metric_that_a_rule_or_a_panel_names_exists(prometheus: str) -> None:
    there = set(ask(prometheus, "/api/v1/label/__name__/values"))
    wanted = named()
    assert all(wanted.values())
    assert {file: sorted(names - there) for file, names in wanted.items()} == {"rules.yml": [], "pisync.json": []}


@needs_postgres
@needs_redis
def test_the_rules_are_loaded_and_none_of_them_is_broken(prometheus: str) -> None:
    (group,) = ask(prometheus, "/api/v1/rules")["groups"]
    wait_until(lambda: all(rule["health"] == "ok" for rule in rules_of(prometheus)), "every rule was evaluated")
    assert len(group["rules"]) == 12


def rules_of(address: str) -> list[dict[str, Any]]:
    (group,) = ask(address, "/api/v1/rules")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@needs_postgres
@needs_redis
def test_every_metric_stands_in_the_guide(prometheus: str) -> None:
    there = {_PARTS.sub("", name) for name in ask(prometheus, "/api/v1/label/__name__/values")}
    ours = {name for name in there if name.startswith("pisync_") and not name.endswith("_created")}
    told = set(re.findall(r"^\| `(pisync_\w+)`", (ROOT / "docs/seeing.md").read_text(), re.MULTILINE))
    assert ours == told
