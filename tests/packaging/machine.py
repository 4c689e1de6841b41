"""A Debian 12 machine under a real systemd, for tests that install packages.

with machine(tmp_path) as debian:
    debian.boot()
    debian.run("apt-get", "install", "-y", "/tmp/some.deb")

Its disk is an overlay over a root that mmdebstrap makes once (half a minute, 250 MB, in /var/tmp) and that is kept; the
machine is booted by systemd-nspawn within two seconds. It has no network but its loopback.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.services import installed, missing, root

SUITE: Final = "bookworm"
CONTENT: Final = "systemd-sysv,dbus,python3,adduser"
PROGRAMS: Final = ("systemd-nspawn", "mmdebstrap", "nsenter")
DEADLINE_S: Final = 60.0
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLEAN: Final = ("env", "-i", _PATH, "LANG=C.UTF-8", "HOME=/root", "DEBIAN_FRONTEND=noninteractive")


class Machine:
    """Its file system is at `root`. Commands run under its systemd once it is booted, and in a chroot before."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.console = root.with_name("console")
        self._container: subprocess.Popen[bytes] | None = None
        self._init: int | None = None

    def boot(self) -> None:
        """Start it, and wait until systemd has started everything."""
        options = ["--quiet", "--console=pipe", "--register=no", "--keep-unit", "--link-journal=no"]
        with self.console.open("wb") as console:
            self._container = subprocess.Popen(
                ["systemd-nspawn", "--boot", f"--directory={self.root}", "--private-network", *options],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        until = time.monotonic() + DEADLINE_S
        while self._state() not in ("running", "degraded"):
            if self._container.poll() is not None:
                missing(f"systemd-nspawn does not work here: {self.console.read_text().strip()}")
            assert time.monotonic() < until, f"the machine does not boot:\n{self.console.read_text()}"
            time.sleep(0.05)

    def run(self, *command: str, user: str = "root", code: int | None = 0, stdin: str = "") -> str:
        """Return what a command prints, on both outputs. Raise AssertionError if it ends with another code."""
        done = subprocess.run(
            [*self._enter(), *(() if user == "root" else ("runuser", "-u", user, "--")), *command],
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert code in (None, done.returncode), f"{command} as {user}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def power_off(self) -> None:
        """End it at once."""
        if self._container is not None:
            if self._init is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGKILL)  # and with it every process of the machine
            self._container.kill()
            self._container.wait()
            self._container, self._init = None, None

    def _enter(self) -> tuple[str, ...]:
        if self._container is None:
            return ("chroot", str(self.root), *_CLEAN)
        return ("nsenter", "--all", f"--target={self._init}", *_CLEAN)

    def _state(self) -> str:
        """Return what systemd says of the machine; nothing before it is there."""
        assert self._container is not None
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children")
        with contextlib.suppress(OSError):  # a process that prepares the machine has ended in between
            for child in children.read_text().split():
                # Before it has become systemd, it is not in all of the machine's namespaces yet.
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._init = int(child)
                    return self.run("systemctl", "is-system-running", code=None).strip()
        return ""


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A new machine, not booted, with its disk in `folder`."""
    root("a machine under systemd")
    for program in PROGRAMS:
        installed(program)
    base = debian_root()
    for name in ("changes", "work", "root"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o755)
    place = folder / "root"
    options = f"lowerdir={base},upperdir={folder / 'changes'},workdir={folder / 'work'}"
    mount = ["mount", "-t", "overlay", "-o", options, "overlay", str(place)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        missing(f"an overlay cannot be mounted here: {done.stderr.strip()}")
    made = Machine(place)
    try:
        yield made
    finally:
        made.power_off()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def debian_root() -> Path:
    """Return the folder with Debian's files; make it if it is not there yet."""
    cache = Path("/var/tmp/pisync-tests")
    cache.mkdir(mode=0o700, exist_ok=True)
    assert cache.stat().st_uid == 0, f"{cache} is not root's"
    key = hashlib.sha256(f"{SUITE} {CONTENT}".encode()).hexdigest()[:8]
    root = cache / f"{SUITE}-{key}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            making = cache / "making"
            shutil.rmtree(making, ignore_errors=True)
            command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--dpkgopt=force-unsafe-io"]
            done = subprocess.run(
                [*command, '--aptopt=Acquire::Languages "none"', f"--include={CONTENT}", SUITE, str(making)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                missing(f"mmdebstrap cannot make Debian's {SUITE}: {done.stderr.strip()[-500:]}")
            making.rename(root)
    return root
