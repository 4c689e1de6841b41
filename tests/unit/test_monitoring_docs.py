"""Every metric is documented, and the rules and the dashboard name only metrics that exist."""

import json
import re
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry

from pisync_receiver.alerts.alerts import AlertMetrics
from pisync_receiver.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "receiver/deploy"
SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def existing() -> set[str]:
    """The names that Prometheus stores, without the suffixes of a histogram."""
    registry = CollectorRegistry()
    for metrics in (Metrics, AlertMetrics):
        metrics(registry)
    kinds = {"counter": "_total"}
    return {metric.name + kinds.get(metric.type, "") for metric in registry.collect()}


def test_every_metric_is_documented() -> None:
    guide = (ROOT / "docs/monitoring.md").read_text()
    assert set(re.findall(r"^\| `(pisync_\w+)`", guide, re.MULTILINE)) == existing()


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    dashboard = json.loads((DEPLOY / "grafana/pisync.json").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {SUFFIX.sub("", name) for name in re.findall(r"\bpisync_\w+", " ".join(expressions))}
    assert len(named) > 10
    assert named <= existing()
