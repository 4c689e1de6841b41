"""Which machine this is, and when another machine is certain."""

from pathlib import Path

import pytest

from pisync_agent.enrollment.machine import Machine, is_another, read_machine

SYSTEM = "0123456789abcdef0123456789abcdef"


def write(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def board(root: Path, content: bytes) -> None:
    write(root, "sys/firmware/devicetree/base/serial-number", content)


def test_board_and_system_are_read(tmp_path: Path) -> None:
    assert read_machine(tmp_path) == Machine()
    write(tmp_path, "etc/machine-id", f"{SYSTEM}\n".encode())
    assert read_machine(tmp_path) == Machine(system=SYSTEM)
    board(tmp_path, b"10000000A1B2C3D4\0")
    assert read_machine(tmp_path) == Machine(board="10000000a1b2c3d4", system=SYSTEM)


@pytest.mark.parametrize("content", [b"", b"\0", b"0000000000000000\0", b"\xff" * 16, b"N/A", b"x" * 300, b"a b c d"])
def test_what_is_no_serial_number_is_unknown(tmp_path: Path, content: bytes) -> None:
    board(tmp_path, content)

    assert read_machine(tmp_path) == Machine()


@pytest.mark.parametrize("passing", ["run/machine-id", ".dockerenv", "run/.containerenv"])
def test_a_machine_id_that_does_not_last_is_unknown(tmp_path: Path, passing: str) -> None:
    """systemd gives one a boot where /etc cannot be written, and a container has one as long as it lives."""
    write(tmp_path, "etc/machine-id", SYSTEM.encode())
    write(tmp_path, passing, b"")

    assert read_machine(tmp_path) == Machine()


def test_an_uninitialized_machine_id_is_unknown(tmp_path: Path) -> None:
    write(tmp_path, "etc/machine-id", b"uninitialized\n")

    assert read_machine(tmp_path) == Machine()


@pytest.mark.parametrize(
    ("known", "here", "another"),
    [
        (Machine(board="a" * 8, system="1" * 32), Machine(board="a" * 8, system="2" * 32), False),
        (Machine(board="a" * 8, system="1" * 32), Machine(board="b" * 8, system="1" * 32), True),
        (Machine(system="1" * 32), Machine(system="2" * 32), True),
        (Machine(system="1" * 32), Machine(board="b" * 8, system="1" * 32), False),
        (Machine(board="a" * 8), Machine(system="1" * 32), False),
        (Machine(board="a" * 8, system="1" * 32), Machine(), False),
        (Machine(), Machine(board="a" * 8), False),
    ],
)
def test_another_machine_is_known_by_the_surest_that_both_have(known: Machine, here: Machine, another: bool) -> None:
    assert is_another(known.fingerprint, here.fingerprint) is another


def test_a_fingerprint_shows_neither_number() -> None:
    stored = str(Machine(board="10000000a1b2c3d4", system=SYSTEM).fingerprint)

    assert "a1b2c3d4" not in stored
    assert SYSTEM[-12:] not in stored
