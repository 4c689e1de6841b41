"""The gateways as they are deployed, before two receivers on one database."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

import httpx
import pytest

from tests.support.certificates import Authority
from tests.support.ports import free_port, listens
from tests.support.receiver_process import ReceiverProcess, wait_until

DEPLOY: Final = Path(__file__).parents[2] / "receiver/deploy"
_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


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
    """`haproxy` or `nginx` with the configuration of this repository. Skips the test where it is not installed."""
    found = shutil.which(program, path=_PATH)
    if found is None:
        pytest.skip(f"{program} is not installed, so its configuration was not run")
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
