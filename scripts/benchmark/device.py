"""What the device does: recording, draining, bytes on the wire, the command's start."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmark.cloud import batch_intake
from benchmark.lessons import Lesson, lessons
from benchmark.measure import Bench, median, seconds
from benchmark.processes import BIN, PATIENCE_S, Agent, agent, receiver
from benchmark.proxy import CountingProxy
from benchmark.report import Result, at_least, at_most, progress
from benchmark.yardsticks import OneRowCommits
from pisync_agent import Recorder
from pisync_common.rules import encode_data
from pisync_common.wire import encode_event

TOGETHER = 50


def recording(bench: Bench) -> Iterator[Result]:
    """`Recorder.record` with the service running, beside one-row commits."""
    folder = bench.place("recording")
    each = bench.pick(40, 20)
    alone: list[float] = []
    threads: list[float] = []
    processes: list[float] = []
    bare: list[float] = []
    single = OneRowCommits(folder / "bare.db")
    with agent(folder / "home") as device:
        device.start()
        for number in range(bench.pick(7, 3)):
            progress(f"record: round {number + 1}")
            some = list(lessons(bench.pick(2_000, 500), seed=number))
            bare.append(single.rate([text_of(seq, lesson) for seq, lesson in enumerate(some, 1)]))
            alone.append(len(some) / seconds(lambda some=some: record_all(device.home, some)))  # type: ignore[misc]
            threads.append(of_threads(device.home, each))
            processes.append(of_processes(device.home, each))
        recorded = device.status()["waiting"]
    single.close()
    expected = len(alone) * (bench.pick(2_000, 500) + 2 * TOGETHER * (each + 1))
    if recorded != expected:
        raise RuntimeError(f"{expected} events were recorded, but {recorded} wait")
    yardstick = f"{median(bare):,.0f}/s"
    for what, rates, target in (
        ("Recorder.record, one thread | one-row commits", alone, 0.50),
        ("  50 threads together | one-row commits", threads, 3),
        ("  50 processes together | one-row commits", processes, 3),
    ):
        yield at_least(what, f"{median(rates):,.0f}/s", yardstick, median(rates) / median(bare), target)


def text_of(seq: int, lesson: Lesson) -> str:
    return encode_event(
        seq=seq,
        type=lesson.type,
        stamp=lesson.stamp,
        learner_id=lesson.learner_id,
        object_id=lesson.object_id,
        data=encode_data(lesson.data),
    )


def record_all(home: Path, some: list[Lesson]) -> None:
    with Recorder(home) as recorder:
        for lesson in some:
            _record(recorder, lesson)


def of_threads(home: Path, each: int) -> float:
    """Events a second of 50 threads of one app, which share its recorder."""
    with Recorder(home) as recorder:
        return _together(threading.Barrier, threading.Thread, each, lambda: recorder)


def of_processes(home: Path, each: int) -> float:
    """Events a second of 50 processes. They are forked: fifty starting interpreters would be measured instead."""
    fork = multiprocessing.get_context("fork")
    return _together(fork.Barrier, fork.Process, each, lambda: Recorder(home))


def _together(
    barrier: Callable[..., Any], worker: Callable[..., Any], each: int, recorder: Callable[[], Recorder]
) -> float:
    """Events a second of 50 workers that begin to record at one moment."""
    start, end = (barrier(TOGETHER + 1, timeout=PATIENCE_S) for _ in range(2))
    workers = [worker(target=_work, args=(recorder, each, number, start, end)) for number in range(TOGETHER)]
    for one in workers:
        one.start()
    start.wait()
    took = seconds(end.wait)
    for one in workers:
        one.join()
    return TOGETHER * each / took


def _work(recorder: Callable[[], Recorder], each: int, number: int, start: Any, end: Any) -> None:
    some = list(lessons(each + 1, seed=1_000 + number))
    mine = recorder()
    _record(mine, some[0])  # connected before the clock runs
    start.wait()
    for lesson in some[1:]:
        _record(mine, lesson)
    end.wait()


def _record(recorder: Recorder, lesson: Lesson) -> None:
    recorder.record(lesson.type, learner_id=lesson.learner_id, object_id=lesson.object_id, data=lesson.data)


def draining(bench: Bench) -> Iterator[Result]:
    """A service with a long queue, beside the rate at which the receiver takes batches; and the service's memory."""
    intake, _ = batch_intake(Bench(folder=bench.place("drain-yardstick"), quick=True))
    count = bench.pick(100_000, 20_000)
    folder = bench.place("draining")
    with agent(folder / "home") as device:
        with receiver(folder / "cloud") as cloud:
            device.start()
            device.enroll(cloud.url, cloud, "pibox-1")
            device.command("sync", "--json")
            port = cloud.port
            idle = device.memory_mib("VmRSS")
        progress(f"drain: recording {count:,} events while the receiver is away")
        _fill(device, count)
        cloud = type(cloud)(folder / "cloud", port=port)
        try:
            progress("drain: delivering")
            summary = json.loads(device.command("sync", "--json"))
        finally:
            cloud.stop()
        peak = device.memory_mib("VmHWM")
    if summary["waiting"] or summary["delivered"] < count:
        raise RuntimeError(f"not everything was delivered: {summary}")
    rate = summary["delivered"] / summary["seconds"]
    yield at_least(
        f"draining {count:,} waiting events | batch intake", f"{rate:,.0f} events/s", f"{intake:,.0f} events/s",
        rate / intake, 0.50,
    )  # fmt: skip
    yield at_most("  the service's memory at its peak (VmHWM, MiB)", f"{peak:.1f} MiB", "60 MiB", peak, 60)
    yield at_most("  idle, after a sync run (VmRSS, MiB)", f"{idle:.1f} MiB", "40 MiB", idle, 40)


def _fill(device: Agent, count: int) -> None:
    """Record `count` events through the command, as NDJSON."""
    rows = (
        json.dumps({"type": one.type, "learner_id": one.learner_id, "object_id": one.object_id, "data": one.data})
        for one in lessons(count, seed=3)
    )
    path = device.home / "lessons.ndjson"
    path.write_text("\n".join(rows) + "\n")
    with path.open() as events:
        environ = os.environ | {"PISYNC_AGENT_HOME": str(device.home)}
        subprocess.run(
            [str(BIN / "pisync"), "record", "-"], stdin=events, stdout=subprocess.DEVNULL, env=environ, check=True
        )


def wire(bench: Bench) -> Iterator[Result]:
    """Bytes from device to receiver for each event, counted by a proxy between them."""
    folder, count = bench.place("wire"), 10_000
    with receiver(folder / "cloud") as cloud, CountingProxy(cloud.port) as proxy, agent(folder / "home") as device:
        device.enroll(proxy.url, cloud, "pibox-1")
        progress(f"wire: {count:,} events")
        _fill_as_lived(device.home, count)
        before = proxy.bytes_up
        summary = json.loads(device.command("sync", "--json"))
        sent = proxy.bytes_up - before
    if summary["delivered"] != count:
        raise RuntimeError(f"not everything was delivered: {summary}")
    each = sent / count
    one_by_one = sum(_alone(seq, lesson) for seq, lesson in enumerate(lessons(count, seed=5), 1)) / count
    yield at_most(
        f"bytes an event, headers included, {count:,} events | JSON", f"{each:.1f} bytes", f"{one_by_one:.0f} bytes",
        each, 45,
    )  # fmt: skip


def _fill_as_lived(home: Path, count: int) -> None:
    """An outbox whose events have the times of school days, not of a burst, which would pack better."""
    from pisync_agent.clock import SystemClock
    from pisync_agent.outbox import NewEvent, OutboxLimits, open_outbox
    from pisync_common.single_writer import WriterLock

    events = [
        NewEvent.create(
            one.type, learner_id=one.learner_id, object_id=one.object_id, data=one.data, key=None, stamp=one.stamp
        )
        for one in lessons(count, seed=5)
    ]
    with WriterLock(home / "outbox.lock"):
        outbox = open_outbox(home, limits=OutboxLimits(), clock=SystemClock(), random_hex=lambda n: os.urandom(n).hex())
        for at in range(0, count, 1_000):
            outbox.append(events[at : at + 1_000])
        outbox.close()


def _alone(seq: int, lesson: Lesson) -> int:
    """Bytes of a request of its own, with the headers an HTTP client sends."""
    body = text_of(seq, lesson).encode()
    head = (
        "POST /api/events HTTP/1.1\r\nHost: pisync.example.org\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\nUser-Agent: pisync/0.1.0\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer psd_{'x' * 43}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return len(head) + len(body)


def starting(bench: Bench) -> Iterator[Result]:
    """`pisync status` beside an interpreter that does nothing."""
    environ = os.environ | {"PISYNC_AGENT_HOME": str(bench.place("starting"))}
    commands = {"status": [str(BIN / "pisync"), "status"], "pass": [sys.executable, "-c", "pass"]}
    subprocess.run([str(BIN / "pisync"), "record", "video.watched"], env=environ, check=True, capture_output=True)
    took: dict[str, list[float]] = {name: [] for name in commands}
    progress("status: starting it again and again")
    for turn in range(bench.pick(30, 12) + 2):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, env=environ, check=False, capture_output=True, stdin=subprocess.DEVNULL)
            if turn >= 2:
                took[name].append(time.perf_counter() - start)
    status, nothing = median(took["status"]), median(took["pass"])
    yield at_most(
        "pisync status | python -c pass", f"{status * 1000:.0f} ms", f"{nothing * 1000:.0f} ms", status / nothing, 5
    )
