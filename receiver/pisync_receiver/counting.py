"""Counting in several worker processes: each keeps its counts in files of a shared folder, and whichever is asked adds
them up. prometheus_client does so when the folder is named in the environment before it is imported."""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, multiprocess

from pisync_receiver.workers import METRICS


def own_registry() -> CollectorRegistry:
    """Where this process counts. What the process itself uses is told only where it is the only one."""
    registry = CollectorRegistry()
    if METRICS not in os.environ:
        ProcessCollector(registry=registry)
    return registry


def shown_registry(own: CollectorRegistry) -> CollectorRegistry:
    """What a scrape sees: this process's counts, or those of all workers together."""
    if METRICS not in os.environ:
        return own
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return together


def worker_ended(folder: Path, process_id: int) -> None:
    """Forget what a worker that ended had open; its counts stay, so that no counter goes back."""
    multiprocess.mark_process_dead(process_id, str(folder))  # type: ignore[no-untyped-call]
