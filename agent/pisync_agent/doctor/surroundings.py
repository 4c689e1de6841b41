"""What an examination asks of the system around it; tests give others."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pisync_agent.clock import kernel_sync_check
from pisync_agent.doctor import clock, disk, network, service
from pisync_common.times import now_ms


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """By default the real system."""

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    monotonic: Callable[[], float] = time.monotonic
    now_ms: Callable[[], int] = now_ms
    synced: Callable[[], bool] = field(default_factory=kernel_sync_check)
    ntp_servers: Callable[[], list[str]] = clock.ntp_servers
    ask_ntp: Callable[[str], int | None] = clock.ask_ntp
    ntp_off: Callable[[], bool] = clock.is_ntp_off
    unit_state: Callable[[], Mapping[str, str] | None] = service.unit_state
    kernel_log: Callable[[], list[str] | None] = disk.kernel_log
    interfaces: Callable[[], list[network.Interface]] = network.interfaces
    resolve: network.Resolve = network.resolve
