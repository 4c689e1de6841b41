"""The device's clocks."""

import re
import time
from pathlib import Path

from pisync_agent.clock import BOOT_ID_FILE, SystemClock, read_boot_id


def test_a_stamp_shows_all_clocks() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    wall = time.time_ns() // 1_000_000
    stamp = SystemClock(kernel_synced=lambda: True).stamp()
    assert wall <= stamp.at_ms <= time.time_ns() // 1_000_000
    assert before <= stamp.boottime_ms <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    assert stamp.clock_synced is True


def test_the_boot_id_is_the_kernels() -> None:
    assert SystemClock().stamp().boot_id == BOOT_ID_FILE.read_text().strip()


def test_without_a_boot_id_a_random_one_is_used(tmp_path: Path) -> None:
    clock = SystemClock(boot_id_file=tmp_path / "none")
    assert re.fullmatch(r"[0-9a-f]{32}", clock.stamp().boot_id)
    assert clock.stamp().boot_id != SystemClock(boot_id_file=tmp_path / "none").stamp().boot_id
    assert clock.stamp().boot_id == clock.stamp().boot_id
    assert SystemClock(boot_id_file=tmp_path / "none").stamp().boot_id != clock.stamp().boot_id


def test_an_invalid_boot_id_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("not an id\n")
    assert re.fullmatch(r"[0-9a-f]{32}", read_boot_id(tmp_path / "boot_id"))


def test_the_kernel_is_asked_at_most_once_a_second() -> None:
    asked = []

    def kernel() -> bool:
        asked.append(1)
        return len(asked) > 1

    clock = SystemClock(kernel_synced=kernel)
    assert [clock.stamp().clock_synced for _ in range(100)] == [False] * 100
    assert len(asked) == 1
    clock._asked_at -= 1.0
    assert clock.stamp().clock_synced is True


def test_the_real_kernel_gives_an_answer() -> None:
    assert SystemClock().synced() in (True, False)


def test_monotonic_never_goes_back() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
