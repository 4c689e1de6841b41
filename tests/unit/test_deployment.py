"""The deployment files say what the programs understand, by the schemas of those who read them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from pisync_receiver import config
from pisync_receiver.api import table
from pisync_receiver.commands.cli import build_parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "receiver/deploy"
VARIABLES = {setting.variable(config.PREFIX) for setting in config.SETTINGS}
ROUTES = {route.path for route in table()} | {"/metrics"}
KUBERNETES = "1.31"


def documents(*names: str) -> list[dict[str, Any]]:
    files = [DEPLOY / "kubernetes" / name for name in names] or sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def titled(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def pods() -> list[dict[str, Any]]:
    return [document["spec"]["template"] for document in documents() if "template" in document.get("spec", {})]


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["spec"]["containers"]]


COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("document", documents(), ids=titled)
def test_kubernetes_takes_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_what_an_operator_needs_is_there() -> None:
    kinds = {document["kind"] for document in documents()}
    assert kinds == {
        "Deployment", "HorizontalPodAutoscaler", "Ingress", "Job", "NetworkPolicy", "PodDisruptionBudget", "Secret",
        "Service",
    }  # fmt: skip


def test_a_field_that_kubernetes_does_not_know_is_noticed() -> None:
    (deployment,) = (one for one in documents("receiver.yaml") if one["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_selectors_and_ports_meet() -> None:
    labels = [pod["metadata"]["labels"] for pod in pods()]
    for document in documents():
        selector = document["spec"].get("selector", {}) if "spec" in document else {}
        if wanted := selector.get("matchLabels", selector):
            assert wanted in labels, titled(document)
    for container in containers():
        ports = {port["name"] for port in container.get("ports", [])}
        probes = [container[name]["httpGet"] for name in container if name.endswith("Probe")]
        assert {probe["port"] for probe in probes} <= ports
        assert {probe["path"] for probe in probes} <= ROUTES
    (service,) = documents("receiver.yaml")[1:2]
    assert service["spec"]["ports"][0]["targetPort"] == containers()[-2]["ports"][0]["name"] == "http"


def test_no_pod_is_root_or_writes_where_it_runs_or_ends_before_it_has_drained() -> None:
    for pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["enableServiceLinks"] is False
        assert pod["spec"]["automountServiceAccountToken"] is False
    for container in containers():
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"].keys() == {"requests", "limits"}
    (receiver,) = (pod["spec"] for pod in pods() if pod["metadata"]["labels"]["app"] == "pisync-receiver")
    settings = {one["name"]: one["value"] for one in receiver["containers"][0]["env"]}
    assert settings["PISYNC_RECEIVER_TRUSTED_PROXIES"] == ""
    times = {name: int(value[:-1]) for name, value in settings.items() if value.endswith("s")}
    assert receiver["terminationGracePeriodSeconds"] >= sum(times.values()) + 5


def chosen(selector: dict[str, Any], app: str) -> bool:
    """Whether a selector of a NetworkPolicy takes the pods with this label `app`."""
    wanted: str = selector.get("matchLabels", {}).get("app", app)
    return wanted == app and all(app in each["values"] for each in selector.get("matchExpressions", []))


def joined(app: str, way: str) -> set[tuple[str, int]]:
    """Who may speak to the pods of an app (`ingress`), or whom they may speak to (`egress`), with the port."""
    found = set()
    for policy in documents("network.yaml"):
        spec = policy["spec"]
        for rule in spec.get(way, []) if chosen(spec["podSelector"], app) else ():
            for peer in rule.get("from", rule.get("to", [{}])):
                selector = peer.get("namespaceSelector") or peer.get("podSelector") or {}
                names = list(selector.get("matchLabels", {}).values())
                names += [name for each in selector.get("matchExpressions", []) for name in each["values"]]
                found |= {(name, port["port"]) for name in names or ["anywhere"] for port in rule["ports"]}
    return found


def test_pods_speak_to_those_they_need_and_no_others() -> None:
    deny = documents("network.yaml")[0]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert joined("pisync-receiver", "ingress") == {("ingress-nginx", 8080), ("monitoring", 8080)}
    assert joined("pisync-worker", "ingress") == joined("pisync-migrate", "ingress") == set()
    ours = ("pisync-receiver", "pisync-worker", "pisync-migrate")
    assert joined("postgres", "ingress") == {(name, 5432) for name in (*ours, "postgres")}
    assert joined("redis", "ingress") == {("pisync-receiver", 6379)}
    common = {("anywhere", 53), ("anywhere", 5432)}
    assert joined("pisync-migrate", "egress") == common
    assert joined("pisync-receiver", "egress") == common | {("anywhere", 6379), ("anywhere", 443)}
    assert joined("pisync-worker", "egress") == common | {("anywhere", 5672), ("anywhere", 5671)}
    labels = {pod["metadata"]["labels"]["app"] for pod in pods()}
    assert labels == set(ours)


@pytest.mark.parametrize("file", [one for one in DEPLOY.rglob("*") if one.is_file()], ids=lambda file: file.name)
def test_every_setting_it_names_exists(file: Path) -> None:
    assert set(re.findall(r"PISYNC_RECEIVER_\w+", file.read_text())) <= VARIABLES | {"PISYNC_RECEIVER_PORT"}


def test_every_command_it_gives_is_one() -> None:
    commands = [container["args"] for container in containers()]
    ours = [service for service in SERVICES.values() if service.get("image") == "pisync-receiver"]
    commands += [service["command"] for service in ours if "command" in service]
    commands += [["serve"]]
    for command in commands:
        build_parser().parse_args(command)
    assert {command[0] for command in commands} == {"migrate", "serve", "worker"}


def test_compose_names_only_what_it_has() -> None:
    for name, service in SERVICES.items():
        needs = service.get("depends_on", {})
        assert set(needs) <= set(SERVICES), name
        for needed, how in needs.items() if isinstance(needs, dict) else ():
            if how["condition"] == "service_healthy" and SERVICES[needed].get("image") != "pisync-receiver":
                assert "healthcheck" in SERVICES[needed], needed
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                made = source in ("./gateway.pem", "./token")  # made on the spot, as the first lines say
                assert made or (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway", "grafana"}
    assert SERVICES["grafana"]["ports"] == ["127.0.0.1:3000:3000"]


def schema_check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compose_takes_it_by_its_own_schema(tmp_path: Path) -> None:
    assert schema_check(DEPLOY / "compose.yaml").returncode == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("read_only: true", "readonly: true"))
    assert "'readonly' was unexpected" in schema_check(wrong).stdout


def test_each_service_is_given_its_own_secrets_alone() -> None:
    asked = {name: set(re.findall(r"\$\{(\w+)", json.dumps(service))) for name, service in SERVICES.items()}
    secrets = {name: {each for each in names if not each.endswith("_DIGEST")} for name, names in asked.items()}
    assert {name: names for name, names in secrets.items() if names} == {
        "migrate": {"DATABASE_PASSWORD"},
        "postgres": {"POSTGRES_PASSWORD", "DATABASE_PASSWORD"},
        **{key: {"DATABASE_PASSWORD", "REDIS_PASSWORD", "ALERT_URLS"} for key in ("receiver-1", "receiver-2")},
        "worker": {"DATABASE_PASSWORD", "RABBITMQ_PASSWORD"},
        "redis": {"REDIS_PASSWORD"},
        "rabbitmq": {"RABBITMQ_PASSWORD"},
        "grafana": {"GRAFANA_PASSWORD"},
    }
    assert not any("env_file" in service for service in SERVICES.values())
    offered = re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    assert {name for name, _ in offered} == set().union(*secrets.values())
    assert all(value == "" for _, value in offered)
    required = re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text())
    assert set(required) == set().union(*asked.values()) - {"ALERT_URLS"}, "there is no default"


def test_services_meet_only_those_they_speak_to() -> None:
    members: dict[str, set[str]] = {name: set() for name in COMPOSE["networks"]}
    for name, service in SERVICES.items():
        for network in service["networks"]:
            members[network].add(name)
    receivers = {"receiver-1", "receiver-2"}
    assert members == {
        "edge": {"gateway"} | receivers,
        "data": {"postgres", "migrate", "worker"} | receivers,
        "cache": {"redis"} | receivers,
        "broker": {"rabbitmq", "worker"},
        "monitoring": {"prometheus"} | receivers,
        "pictures": {"prometheus", "grafana"},
    }
    outward = {name for name, network in COMPOSE["networks"].items() if not (network or {}).get("internal")}
    assert outward == {"edge", "pictures"}, "devices and alerts; Grafana's port on loopback"


def test_every_service_of_compose_is_confined_and_watched() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        built = service["image"] == "pisync-receiver"  # its Dockerfile has the check
        assert built or "test" in service["healthcheck"], name


def test_every_base_image_is_named_by_its_digest(tmp_path: Path) -> None:
    """A digest is required, and the guide's own command, with a docker that answers like the real program, finds it."""
    named = {service["image"] for service in SERVICES.values()} - {"pisync-receiver"}
    named |= {line.split()[1] for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("FROM")}
    images = dict(re.findall(r"^(\S+)@\$\{(\w+)_DIGEST(?::\?.*)?\}$", "\n".join(named), re.MULTILINE))
    assert len(images) == len(named)
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nfor last; do :; done\n[ "$1" = pull ] || echo "${last%%:*}@sha256:of-$last"\n')
    docker.chmod(0o755)
    lines = (DEPLOY / "env.example").read_text().splitlines()
    first, last = lines.index("#   while read -r name image; do"), lines.index("#   END")
    command = "\n".join(line.removeprefix("#   ") for line in lines[first : last + 1])
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-eu", "-c", command], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    found = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    assert found == {f"{name}_DIGEST": f"sha256:of-{image}" for image, name in images.items()}


def test_no_secret_stands_in_compose() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert all("${" in line for line in text.splitlines() if re.search(r"(?i)(password|pass|secret)\w*\s*[:=]", line))


def test_the_image_is_made_of_what_the_repository_has_and_runs_unprivileged() -> None:
    lines = [line.split() for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.strip()]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for words in lines:
        if words[0] == "COPY" and not words[1].startswith("--from"):
            for source in words[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source
    users = [words[1] for words in lines if words[0] == "USER"]
    assert users == ["10001"]
    assert ["ENTRYPOINT", '["pisync-receiver"]'] in lines
    health = next(" ".join(words) for words in lines if words[0] == "CMD" and "healthz" in " ".join(words))
    compile(json.loads(health.removeprefix("CMD "))[-1], "healthcheck", "exec")
