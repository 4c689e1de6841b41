"""HAProxy and nginx as they are deployed, before two receivers on one PostgreSQL."""

import json
import os
import socket
import ssl
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final

import httpx
import pytest

from tests.support.certificates import Authority
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import ReceiverProcess, free_port, listens, wait_until
from tests.support.services import installed

pytestmark = needs_postgres

PROGRAMS = ("haproxy", "nginx")
GENEROUS = 100_000
REPORT = {"timestamp": "2026-11-23T10:00:00Z", "total_files_synced": 3, "total_errors": 0, "internet_speed": 2.5}


DEPLOY: Final = Path(__file__).parents[2] / "receiver/deploy"


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A running gateway, and the receivers behind it."""

    url: str
    authority: Path
    receivers: tuple[ReceiverProcess, ReceiverProcess]

    def client(self, **headers: str) -> httpx.Client:
        """A client that trusts the gateway's certificate and keeps its connection."""
        trusted = ssl.create_default_context(cafile=str(self.authority))
        return httpx.Client(base_url=self.url, verify=trusted, headers=headers, timeout=60, trust_env=False)


@contextmanager
def gateway(
    program: str, folder: Path, receivers: tuple[ReceiverProcess, ReceiverProcess], *, rate: int
) -> Iterator[Gateway]:
    """`haproxy` or `nginx` with the configuration of this repository."""
    found = installed(program)
    authority = Authority(folder / "authority")
    pem = authority.pem()
    port = free_port()
    variables = {
        "PISYNC_BIND": f"127.0.0.1:{port}",
        "PISYNC_PEM": str(pem),
        "PISYNC_ONE": f"127.0.0.1:{receivers[0].port}",
        "PISYNC_TWO": f"127.0.0.1:{receivers[1].port}",
        "PISYNC_RATE": str(rate),
    }
    command = _command(program, found, folder, variables)
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, "the gateway listens")
        assert process.poll() is None, (folder / "gateway.log").read_text()
        yield Gateway(url=f"https://localhost:{port}", authority=authority.certificate, receivers=receivers)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(program: str, found: str, folder: Path, variables: dict[str, str]) -> list[str]:
    if program == "haproxy":
        return [found, "-f", str(DEPLOY / "haproxy.cfg")]
    config = folder / "nginx.conf"
    filled = Template((DEPLOY / "nginx.conf.template").read_text()).safe_substitute(variables)
    config.write_text(filled if os.geteuid() else "user root;\n" + filled)
    return [found, "-p", str(folder), "-c", str(config), "-e", "stderr"]


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ReceiverProcess, ReceiverProcess]]:
    folder: Path = tmp_path_factory.mktemp("receivers")
    flags = ("--trusted-proxies", "127.0.0.1", "--drain-timeout", "3s", "--device-rate", "0")
    with fresh_database() as url:
        one = ReceiverProcess(folder / "one", *flags, database_url=url)
        other = ReceiverProcess(folder / "other", *flags, database_url=url)
        with one, other:
            yield one, other


@pytest.fixture(params=PROGRAMS)
def running(
    request: pytest.FixtureRequest, tmp_path: Path, receivers: tuple[ReceiverProcess, ReceiverProcess]
) -> Iterator[Gateway]:
    with gateway(request.param, tmp_path, receivers, rate=GENEROUS) as made:
        yield made


def enrolled(running: Gateway) -> tuple[str, httpx.Client]:
    device_id = f"pibook-{uuid.uuid4().hex[:8]}"
    code = running.receivers[0].enrollment_code()
    with running.client() as stranger:
        answer = stranger.post("/api/enroll", json={"code": code, "device_id": device_id})
    assert answer.status_code == 201, answer.text
    return device_id, running.client(Authorization=f"Bearer {answer.json()['token']}")


def access_lines(running: Gateway) -> list[dict[str, Any]]:
    lines = "".join(receiver.log() for receiver in running.receivers).splitlines()
    return [line for line in map(json.loads, lines) if line["logger"] == "pisync_receiver.access"]


def test_tls_and_nothing_else(running: Gateway) -> None:
    with running.client() as client:
        assert client.get("/healthz").json()["status"] == "ok"
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url + "/healthz", trust_env=False)  # a certificate without a trusted issuer
    try:
        plain = httpx.get(running.url.replace("https", "http") + "/healthz", trust_env=False).status_code
    except httpx.TransportError:
        plain = 0
    assert plain in (0, 400)


def test_people_sign_in_with_a_cookie_for_https_alone(running: Gateway) -> None:
    token = running.receivers[0].admin_token("viewer")
    with running.client(Origin=running.url) as browser:
        answer = browser.post("/sign-in", data={"token": token, "next": "/devices"})
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-pisync=pss_")
        assert cookie.endswith("; Secure")
        browser.headers["Cookie"] = cookie.partition(";")[0]
        assert [browser.get("/devices").status_code for _ in range(4)] == [200] * 4  # whichever receiver answers
    with running.client(Origin="https://evil.example") as elsewhere:
        assert elsewhere.post("/sign-in", data={"token": token}).status_code == 403


def test_the_caller_is_logged_by_its_own_address_whatever_it_claims(running: Gateway) -> None:
    name = uuid.uuid4().hex
    with running.client(**{"X-Forwarded-For": "203.0.113.7", "X-Request-Id": name}) as client:
        assert client.get("/healthz").status_code == 200
    wait_until(lambda: any(line["request_id"] == name for line in access_lines(running)), "it is logged")
    (line,) = (line for line in access_lines(running) if line["request_id"] == name)
    assert line["client"] == "127.0.0.1"


def test_a_body_over_the_limit_reaches_no_receiver(running: Gateway) -> None:
    _, client = enrolled(running)
    before = len(access_lines(running))
    with client:
        try:
            status = client.post("/api/events", content=b"x" * 2**21).status_code
        except httpx.TransportError:
            status = 413  # it hung up while this was still sending
    assert status == 413
    assert [line for line in access_lines(running)[before:] if line["status"] == 413] == []


METRICS: Final = (
    *("/metrics", "/metrics/", "/metrics?x=1", "/%6detrics", "/%6D%65trics", "/METRICS", "/Metrics", "/%4detrics"),
    *(
        "//metrics",
        "///metrics",
        "/./metrics",
        "/././/metrics",
        "/%2e/metrics",
        "/%2Fmetrics",
        "/metrics/.",
        "/metrics%2f",
    ),
    *("/api/../metrics", "/api/x/../../metrics", "/api/%2e%2e/metrics", "/api%2f..%2fmetrics", "/../metrics"),
    *(
        "http://localhost/metrics",
        "http://localhost//%6detrics",
        "/metrics#x",
        "/metrics;x",
        "/%256detrics",
        "/metrics%00",
    ),
)


def test_no_spelling_of_the_metrics_passes_the_gateway(running: Gateway) -> None:
    """Other paths pass, also with `metrics` for a device."""
    token = running.receivers[0].admin_token()
    before = metrics_served(running)
    found = {target: status_of(running, target, token) for target in METRICS}
    assert {target: status for target, status in found.items() if status not in (400, 404)} == {}
    assert metrics_served(running) == before
    with running.client(Authorization=f"Bearer {token}") as client:
        answer = client.get("/api/sync-event/device/metrics/sync-history")
        assert answer.headers["content-type"] == "application/problem+json", "the receiver knows no such device"
        assert client.get("/healthz").status_code == 200


def metrics_served(running: Gateway) -> int:
    return sum(line.get("route") == "/metrics" for line in access_lines(running))


def status_of(running: Gateway, target: str, token: str) -> int:
    """The status for a request line with this target, as it is: an HTTP library would tidy it first."""
    port = int(running.url.rpartition(":")[2])
    trusted = ssl.create_default_context(cafile=str(running.authority))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        lines = (f"GET {target} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}", "Connection: close")
        secured.sendall("\r\n".join((*lines, "", "")).encode())
        return int(secured.recv(4096).split(b" ")[1])


def test_a_slow_sender_is_cut_off(running: Gateway) -> None:
    trusted = ssl.create_default_context(cafile=str(running.authority))
    port = int(running.url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.settimeout(60)
        secured.sendall(b"POST /api/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        answer = secured.recv(4096)
    assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_too_many_requests_are_refused(
    program: str, tmp_path: Path, receivers: tuple[ReceiverProcess, ReceiverProcess]
) -> None:
    with gateway(program, tmp_path, receivers, rate=1) as running, running.client() as client:
        statuses = [client.get("/healthz").status_code for _ in range(150)]
    assert statuses[0] == 200
    assert set(statuses) == {200, 429}


def test_a_rolling_restart_under_load_fails_no_request(running: Gateway, request: pytest.FixtureRequest) -> None:
    with_reports = "haproxy" in request.node.name  # nginx sends on to a receiver that drains; see its configuration
    stop = threading.Event()
    answered = [0] * 4
    failed: list[str] = []

    def load(number: int) -> None:
        device_id, client = enrolled(running)
        seq = 1
        with client:
            while not stop.is_set():
                try:
                    answers = [client.post("/api/events", json=batch(device_id, seq))]
                    if with_reports:
                        key = {"Idempotency-Key": uuid.uuid4().hex}
                        report = {"device_id": device_id, **REPORT}
                        answers.append(client.post("/api/sync-event", json=report, headers=key))
                except httpx.TransportError as error:
                    failed.append(repr(error))
                    return
                failed.extend(f"{one.status_code} {one.text}" for one in answers if not one.is_success)
                answered[number] += 1
                seq += 1

    senders = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for sender in senders:
        sender.start()
    try:
        for receiver in running.receivers:
            goes_on(answered, failed)
            receiver.stop()
            goes_on(answered, failed)
            receiver.start()
            served = receiver.log().count('"route":"/api/events"')
            wait_until(
                lambda receiver=receiver, served=served: (  # type: ignore[misc]
                    bool(failed) or receiver.log().count('"route":"/api/events"') > served + 5
                ),
                "the receiver is used again",
            )
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    assert failed == []


def batch(device_id: str, seq: int) -> dict[str, Any]:
    events = [{"seq": seq, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00Z"}]
    return {"device_id": device_id, "stream": "stream-1", "events": events}


def goes_on(answered: list[int], failed: list[str]) -> None:
    before = list(answered)
    wait_until(
        lambda: bool(failed) or all(now > count + 5 for now, count in zip(answered, before, strict=True)),
        "every device is answered",
    )
