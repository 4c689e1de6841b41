"""A real agent through gateways that give requests ids of their own, double headers, or change the answer's framing.

An answer is believed for PiSync's own nonce. `X-Request-Id` belongs to gateways.
"""

import http.client
import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.processes import AgentProcess, ReceiverProcess, free_port, listens, wait_until
from tests.support.services import installed

NGINX: Final = """
daemon off;
pid nginx.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:%(port)s;
        location / {
            %(rules)s
            proxy_pass http://127.0.0.1:%(receiver)s;
        }
    }
}
"""
HAPROXY: Final = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend devices
    bind 127.0.0.1:%(port)s
    unique-id-format %%{+X}o%%ci:%%cp_%%fi:%%fp_%%Ts_%%rt:%%pid
    %(rules)s
    server one 127.0.0.1:%(receiver)s
"""
PROGRAMS: Final = {
    "nginx, proxy_set_header": ("nginx", "proxy_set_header X-Request-Id $request_id;"),
    "nginx, add_header": ("nginx", "add_header X-Request-Id $request_id always;"),
    "nginx, both": (
        "nginx",
        "proxy_set_header X-Request-Id $request_id; add_header X-Request-Id $request_id always;",
    ),
    "nginx, nonce doubled": ("nginx", "add_header PiSync-Nonce $http_pisync_nonce always;"),
    "haproxy, unique-id-header": (
        "haproxy",
        "unique-id-header X-Request-ID\n default_backend receivers\nbackend receivers",
    ),
    "haproxy, set-header": (
        "haproxy",
        "unique-id-header X-Request-ID\n http-response set-header X-Request-ID %[unique-id]\n"
        " default_backend receivers\nbackend receivers",
    ),
}

Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture(scope="module")
def code(receiver: ReceiverProcess) -> str:
    return receiver.enrollment_code("--uses", "100")


@contextmanager
def program(name: str, rules: str, folder: Path, receiver: ReceiverProcess) -> Iterator[str]:
    """nginx or HAProxy before the receiver; its address. See `installed`."""
    found = installed(name)
    port = free_port()
    config = folder / f"{name}.conf"
    text = (NGINX if name == "nginx" else HAPROXY) % {"port": port, "rules": rules, "receiver": receiver.port}
    config.write_text(text if name == "haproxy" or os.geteuid() else "user root;\n" + text)
    flags = ["-f", str(config)] if name == "haproxy" else ["-p", str(folder), "-c", str(config), "-e", "stderr"]
    log = folder / "gateway.log"
    with log.open("w") as out, subprocess.Popen([found, *flags], stdout=out, stderr=out, cwd=folder) as process:
        try:
            wait_until(lambda: listens(port) or process.poll() is not None, "the gateway listens")
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def deliver(url: str, code: str, home: Path) -> dict[str, Any]:
    """Enroll, record and deliver through a gateway; the result of the sync run."""
    with AgentProcess(home) as agent:
        agent.enroll(url, code, device_id=f"pibook-{uuid.uuid4().hex[:8]}")
        for _ in range(3):
            agent.record()
        result: dict[str, Any] = agent.json("sync")
        return result


@pytest.mark.parametrize(("name", "rules"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_device_delivers_through_a_real_gateway(
    name: str, rules: str, tmp_path: Path, receiver: ReceiverProcess, code: str
) -> None:
    with program(name, rules, tmp_path, receiver) as url:
        result = deliver(url, code, tmp_path / "home")

    assert (result["delivered"], result["waiting"], result["failure"]) == (3, 0, None)


# Small proxies that behave as gateways that cannot run here.


def envoy(sent: Headers, answered: Headers) -> tuple[Headers, Headers]:
    """Envoy: names in lower case, an id of its own, headers of its own in both directions."""
    ours = [("x-request-id", str(uuid.uuid4())), ("x-envoy-expected-rq-timeout-ms", "15000")]
    back = [("x-envoy-upstream-service-time", "3"), ("server", "envoy")]
    sent = [(name.lower(), value) for name, value in sent if name.lower() != "x-request-id"]
    answered = [(name.lower(), value) for name, value in answered if name.lower() != "server"]
    return sent + ours, answered + back


def heroku(sent: Headers, answered: Headers) -> tuple[Headers, Headers]:
    """Heroku's router: an id of its own, Via, and a connection for each request."""
    sent = [(name, value) for name, value in sent if name.lower() != "x-request-id"]
    return [*sent, ("X-Request-Id", str(uuid.uuid4()))], [*answered, ("Via", "1.1 vegur"), ("Connection", "close")]


def merging(sent: Headers, answered: Headers) -> tuple[Headers, Headers]:
    """A gateway that doubles the nonce of the request, in one line."""
    return [(name, f"{value}, {value}" if name == "PiSync-Nonce" else value) for name, value in sent], answered


def dropping(sent: Headers, answered: Headers) -> tuple[Headers, Headers]:
    """A gateway that passes only headers it knows."""
    return [each for each in sent if not each[0].lower().startswith("pisync")], answered


def mixing(sent: Headers, answered: Headers) -> tuple[Headers, Headers]:
    """A gateway that adds another nonce than that of the request."""
    return sent, [*answered, ("PiSync-Nonce", "0123456789abcdef")]


Change = Callable[[Headers, Headers], tuple[Headers, Headers]]


@contextmanager
def small_proxy(change: Change, receiver: ReceiverProcess) -> Iterator[str]:
    """A proxy that changes headers and answers in chunks; its address."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent, _ = change(list(self.headers.items()), [])
            with closing(http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=30)) as upstream:
                upstream.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in sent:
                    upstream.putheader(name, value)
                upstream.endheaders(body)
                answer = upstream.getresponse()
                content = answer.read()
            _, answered = change([], answer.getheaders())
            self.send_response_only(answer.status)
            for name, value in answered:
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for at in range(0, len(content), 50):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(content[at : at + 50]), content[at : at + 50]))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("change", [envoy, heroku, merging])
def test_a_device_delivers_through_a_gateway_that_changes_headers(
    change: Change, tmp_path: Path, receiver: ReceiverProcess, code: str
) -> None:
    with small_proxy(change, receiver) as url:
        result = deliver(url, code, tmp_path)

    assert (result["delivered"], result["waiting"], result["failure"]) == (3, 0, None)


@pytest.mark.parametrize(("change", "said"), [(dropping, "PiSync-Nonce"), (mixing, "nonce")])
def test_a_gateway_that_loses_the_nonce_is_named_as_the_cause(
    change: Change, said: str, tmp_path: Path, receiver: ReceiverProcess, code: str
) -> None:
    device = f"pibook-{uuid.uuid4().hex[:8]}"
    with AgentProcess(tmp_path) as agent, small_proxy(change, receiver) as url:
        refused = agent.run("enroll", url, "--code", code, "--device-id", device)
        assert refused.returncode == 3
        assert said in refused.stderr

        agent.enroll(receiver.url, code, device_id=device)  # the same code and id give the lost answer again
        assert agent.record() == 1
        agent.command("sync")
