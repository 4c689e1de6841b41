"""Whether the link is metered, asked over a real message bus, where a stand-in speaks for NetworkManager."""

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pisync_agent.network.metered import BUSCTL, is_metered
from tests.support.processes import wait_until
from tests.support.services import installed

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""
PATIENT = [word.replace("--timeout=2", "--timeout=60") for word in BUSCTL]
"""The same command, on a machine that is busy with tests."""
CALL, RETURN = 1, 2
INTERFACE, MEMBER, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE, PATH = 2, 3, 5, 6, 7, 8, 1


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system bus of this test's own."""
    for program in ("dbus-daemon", "busctl"):
        installed(program)
    path = tmp_path / "bus"
    (tmp_path / "bus.conf").write_text(CONFIG.format(path=path))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    with subprocess.Popen(
        ["dbus-daemon", f"--config-file={tmp_path / 'bus.conf'}", "--nofork"], stderr=subprocess.DEVNULL
    ) as daemon:
        wait_until(path.exists, "the bus listens")
        yield path
        daemon.terminate()


class NetworkManager:
    """Owns NetworkManager's name on the bus, and answers every call with the variant `u METERED`."""

    def __init__(self, bus: Path, metered: int) -> None:
        self._metered = metered
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(bus))
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        assert self._socket.recv(1024).startswith(b"OK")
        self._socket.sendall(b"BEGIN\r\n")
        self._serial = 0
        self._call("Hello", "", b"")
        self._call("RequestName", "su", text(b"org.freedesktop.NetworkManager") + b"\0" + struct.pack("<I", 0))
        while self._received()[0] != RETURN:  # to Hello
            pass
        while self._received()[0] != RETURN:  # to RequestName
            pass
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while (message := self._received())[0]:
            kind, serial, sender = message
            if kind == CALL:
                body = b"\x01u\0\0" + struct.pack("<I", self._metered)
                self._send(
                    RETURN, body, [(REPLY_SERIAL, "u", serial), (DESTINATION, "s", sender), (SIGNATURE, "g", "v")]
                )

    def _call(self, member: str, signature: str, body: bytes) -> None:
        bus = "org.freedesktop.DBus"
        fields: list[tuple[int, str, str | int]] = [
            (PATH, "o", "/org/freedesktop/DBus"), (DESTINATION, "s", bus), (INTERFACE, "s", bus), (MEMBER, "s", member),
        ]  # fmt: skip
        self._send(CALL, body, [*fields, (SIGNATURE, "g", signature)] if signature else fields)

    def _send(self, kind: int, body: bytes, fields: list[tuple[int, str, str | int]]) -> None:
        self._serial += 1
        packed = b""
        for code, type, value in fields:
            packed += bytes(-len(packed) % 8) + bytes([code, 1]) + type.encode() + b"\0"
            if isinstance(value, int):
                packed += struct.pack("<I", value)
            else:
                packed += bytes([len(value)]) + value.encode() + b"\0" if type == "g" else text(value.encode())
        head = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), self._serial, len(packed)) + packed
        self._socket.sendall(head + bytes(-len(head) % 8) + body)

    def _received(self) -> tuple[int, int, str]:
        """Return the next message's kind, serial and sender; kind 0 at the end."""
        head = self._exactly(16)
        if len(head) < 16:
            return 0, 0, ""
        kind, size, serial, fields = head[1], *struct.unpack("<III", head[4:16])
        packed = self._exactly(fields + -fields % 8)
        self._exactly(size)
        at = packed.find(bytes([SENDER]) + b"\x01s\0")
        length = int.from_bytes(packed[at + 4 : at + 8], "little") if at >= 0 else 0
        return kind, serial, packed[at + 8 : at + 8 + length].decode()

    def _exactly(self, size: int) -> bytes:
        return self._socket.recv(size, socket.MSG_WAITALL) if size else b""


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value + b"\0"


@pytest.fixture
def network_manager(bus: Path) -> Iterator[Callable[[int], None]]:
    made: list[NetworkManager] = []
    yield lambda metered: made.append(NetworkManager(bus, metered))
    for each in made:
        each.close()


@pytest.mark.parametrize(("says", "metered"), [(0, False), (1, True), (2, False), (3, True), (4, False)])
def test_networkmanager_is_asked_over_the_bus(network_manager: Callable[[int], None], says: int, metered: bool) -> None:
    network_manager(says)

    assert is_metered(PATIENT, patience=60) is metered


def test_without_networkmanager_no_link_is_metered(bus: Path) -> None:
    assert is_metered(PATIENT, patience=60) is False


def test_without_a_bus_no_link_is_metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    assert is_metered(PATIENT, patience=60) is False
