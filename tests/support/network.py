"""A device's link to its receiver as a network namespace: a rate, random loss, and a cable that can be pulled.

with Link() as link, ReceiverProcess(tmp_path, "--host", link.receiver) as receiver:
    link.shape("256kbit")
    agent = link.agent(tmp_path / "device")   # its commands and its service run in the namespace
    link.lose(5)                              # percent, each way
    link.down()
    link.up()

Needs root, and the programs ip, tc and nft; tests are skipped where one is missing.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.processes import AgentProcess
from tests.support.services import installed, root

_NUMBERS: Final = itertools.count()
_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_QUEUE: Final = ("burst", "16kb", "latency", "400ms")
_ETHERNET_BYTES: Final = 14
"""The head of a frame, which the interface counts with the packet."""
_TABLE: Final = "pisync_test"


class Link:
    """A namespace with one link. The receiver's side of the link is this machine."""

    def __init__(self) -> None:
        root("a network namespace")
        for program in ("ip", "tc", "nft"):
            installed(program)
        number = next(_NUMBERS)
        name = f"ps{os.getpid()}x{number}"
        self.namespace = name
        self._inside, self._outside = f"{name}d"[-15:], f"{name}r"[-15:]
        # Of 198.18.0.0/15, which is set aside for tests of networks; a /29 for each link.
        network = (os.getpid() * 4 + number % 4) % 16_384 * 8
        self._prefix = f"198.{18 + network // 65_536}.{network // 256 % 256}"
        self._last = network % 256
        self.receiver = f"{self._prefix}.{self._last + 1}"
        """The receiver's address."""

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.namespace)
        try:
            _run("ip", "link", "add", self._outside, "type", "veth", "peer", self._inside, "netns", self.namespace)
            _run("ip", "address", "add", f"{self.receiver}/29", "dev", self._outside)
            _run("ip", "link", "set", self._outside, "up")
            self._in("sysctl", "-q", "net.ipv4.conf.all.promote_secondaries=1")
            self._in("ip", "address", "add", self._address(2), "dev", self._inside)
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if Path(f"/sys/class/net/{self._outside}").exists():
            _run("ip", "link", "delete", self._outside)
        _run("ip", "netns", "delete", self.namespace)

    def agent(self, home: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> AgentProcess:
        """Return an agent that lives in the namespace."""
        made = AgentProcess(home, *arguments, environ=environ)
        made.program = ("ip", "netns", "exec", self.namespace, sys.executable, "-m", "pisync_agent")
        return made

    def shape(self, rate: str) -> None:
        """Limit the rate each way, with a queue of 400 ms."""
        self._in("tc", "qdisc", "replace", "dev", self._inside, "root", "tbf", "rate", rate, *_QUEUE)
        _run("tc", "qdisc", "replace", "dev", self._outside, "root", "tbf", "rate", rate, *_QUEUE)

    def lose(self, percent: int) -> None:
        """Lose packets at regular intervals, each way: a random loss would make every run of a test another test."""
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; numgen inc mod {100 // percent} 0 drop; }}\n"
            for hook in ("input", "output")
        )
        self._in("nft", f"table inet {_TABLE} {{ {chains} }}")

    def down(self) -> None:
        self._in("ip", "link", "set", self._inside, "down")

    def up(self) -> None:
        self._in("ip", "link", "set", self._inside, "up")
        self._in("ip", "route", "replace", "default", "via", self.receiver)

    def move(self) -> None:
        """Give the device another address, as another network would, without a moment without a link."""
        self._in("ip", "address", "add", self._address(3), "dev", self._inside)
        self._in("ip", "address", "delete", self._address(2), "dev", self._inside)
        self._in("ip", "route", "replace", "default", "via", self.receiver)

    def packets(self) -> tuple[int, int]:
        """Return the bytes that the device has sent and received so far in IP packets, repeats included."""
        return self._ip_bytes("rx"), self._ip_bytes("tx")

    def _ip_bytes(self, way: str) -> int:
        folder = Path(f"/sys/class/net/{self._outside}/statistics")
        size, number = (int((folder / f"{way}_{what}").read_text()) for what in ("bytes", "packets"))
        return size - number * _ETHERNET_BYTES

    def _address(self, number: int) -> str:
        return f"{self._prefix}.{self._last + number}/29"

    def _in(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.namespace, *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, env=os.environ | {"PATH": _PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
