"""What the device does: recording, and draining a long queue."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmark.intake import batch_rate
from benchmark.lessons import Lesson, lessons
from benchmark.processes import DEADLINE_S, Receiver, receiver
from benchmark.report import Bench, Result, at_least, at_most, progress
from benchmark.yardsticks import OneRowCommits
from pisync_agent import Recorder
from pisync_common.rules import encode_data
from pisync_common.wire import encode_event
from tests.support.processes import AgentProcess

TOGETHER: Final = 50


def recording(bench: Bench) -> Iterator[Result]:
    """`Recorder.record` with the service running, beside one-row commits."""
    folder = bench.place("recording")
    each, alone = bench.pick(40, 20), bench.pick(2_000, 500)
    rates: dict[str, list[float]] = {"bare": [], "one thread": [], "50 threads": [], "50 processes": []}
    single = OneRowCommits(folder / "bare.db")
    with AgentProcess(folder / "home") as device:
        device.start()
        for number in range(bench.pick(7, 3)):
            progress(f"record: round {number + 1}")
            some = list(lessons(alone, seed=number))
            rates["bare"].append(single.rate([_text(seq, lesson) for seq, lesson in enumerate(some, 1)]))
            rates["one thread"].append(_alone(device.home, some))
            rates["50 threads"].append(_of_threads(device.home, each))
            rates["50 processes"].append(_of_processes(device.home, each))
        recorded = device.status()["waiting"]
    single.close()
    expected = len(rates["bare"]) * (alone + 2 * TOGETHER * (each + 1))
    if recorded != expected:
        raise RuntimeError(f"{expected} events were recorded, but {recorded} are pending")
    bare = median(rates.pop("bare"))
    for who, measured in rates.items():
        rate = median(measured)  # without a target: on a card, the disk decides
        yield at_least(f"Recorder.record, {who} | one-row commits", f"{rate:,.0f}/s", f"{bare:,.0f}/s", rate / bare, 0)


def _text(seq: int, lesson: Lesson) -> str:
    return encode_event(
        seq=seq,
        type=lesson.type,
        stamp=lesson.stamp,
        learner_id=lesson.learner_id,
        object_id=lesson.object_id,
        data=encode_data(lesson.data),
    )


def _alone(home: Path, some: list[Lesson]) -> float:
    with Recorder(home) as recorder:
        start = time.perf_counter()
        for lesson in some:
            _record(recorder, lesson)
        return len(some) / (time.perf_counter() - start)


def _of_threads(home: Path, each: int) -> float:
    """Return events a second of 50 threads of one app, which share its recorder."""
    with Recorder(home) as recorder:
        return _together(threading.Barrier, threading.Thread, each, lambda: recorder)


def _of_processes(home: Path, each: int) -> float:
    """Return events a second of 50 processes, forked, so that no start of an interpreter is measured."""
    fork = multiprocessing.get_context("fork")
    return _together(fork.Barrier, fork.Process, each, lambda: Recorder(home))


def _together(
    barrier: Callable[..., Any], worker: Callable[..., Any], each: int, recorder: Callable[[], Recorder]
) -> float:
    start, end = (barrier(TOGETHER + 1, timeout=DEADLINE_S) for _ in range(2))
    workers = [worker(target=_work, args=(recorder, each, number, start, end)) for number in range(TOGETHER)]
    for started in workers:
        started.start()
    start.wait()
    began = time.perf_counter()
    end.wait()
    took = time.perf_counter() - began
    for started in workers:
        started.join()
    return TOGETHER * each / took


def _work(recorder: Callable[[], Recorder], each: int, number: int, start: Any, end: Any) -> None:
    first, *rest = lessons(each + 1, seed=1_000 + number)
    mine = recorder()
    _record(mine, first)  # connected before the clock runs
    start.wait()
    for lesson in rest:
        _record(mine, lesson)
    end.wait()


def _record(recorder: Recorder, lesson: Lesson) -> None:
    recorder.record(lesson.type, learner_id=lesson.learner_id, object_id=lesson.object_id, data=lesson.data)


def draining(bench: Bench) -> Iterator[Result]:
    """A service with a long queue, beside the rate at which the receiver takes batches; and the service's memory."""
    intake, _ = batch_rate(Bench(folder=bench.place("drain-yardstick"), quick=True), "sqlite")
    count, folder = bench.pick(100_000, 20_000), bench.place("draining")
    url = f"sqlite:///{folder / 'cloud' / 'receiver.db'}"
    with AgentProcess(folder / "home") as device:
        with receiver(folder / "cloud", url) as cloud:
            device.start()
            device.enroll(cloud.url, cloud.command("enrollment", "create"), device_id="pibox-1")
            device.command("sync", "--json")
            idle = device.memory_mib("VmRSS")
        progress(f"drain: recording {count:,} events while the receiver is away")
        _fill(device, count)
        again = Receiver(folder / "cloud", url, port=cloud.port)
        try:
            progress("drain: delivering")
            summary = json.loads(device.command("sync", "--json"))
        finally:
            again.stop()
        peak = device.memory_mib("VmHWM")
    if summary["waiting"] or summary["delivered"] < count:
        raise RuntimeError(f"not everything was delivered: {summary}")
    rate = summary["delivered"] / summary["seconds"]
    yield at_least(
        f"draining {count:,} events | batches", f"{rate:,.0f} events/s", f"{intake:,.0f} events/s", rate / intake, 0.5
    )
    yield at_most("  the service's memory at its peak | 60 MiB", f"{peak:.1f} MiB", "60 MiB", peak / 60, 1)
    yield at_most("  idle, after a sync run | 40 MiB", f"{idle:.1f} MiB", "40 MiB", idle / 40, 1)


def _fill(device: AgentProcess, count: int) -> None:
    """Record `count` events through the command, as NDJSON."""
    rows = (
        {"type": lesson.type, "learner_id": lesson.learner_id, "object_id": lesson.object_id, "data": lesson.data}
        for lesson in lessons(count, seed=3)
    )
    device.command("record", "-", stdin="".join(f"{json.dumps(row)}\n" for row in rows))
