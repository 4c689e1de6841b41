"""One examination: two chains of checks side by side, the device and the way to the receiver, with a common end.

A chain that does not end in time is left behind: the check it is in is reported as such, those after it as not made.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pisync_agent.doctor.outbox as outbox
from pisync_agent.doctor import disk, folder, service
from pisync_agent.doctor.deadlines import Deadline, Pending
from pisync_agent.doctor.findings import (
    CHECKS,
    DEVICE_CHECKS,
    NETWORK_CHECKS,
    Finding,
    bad,
    in_order,
    skipped,
    warn,
)
from pisync_agent.doctor.subject import Subject, gather
from pisync_agent.doctor.surroundings import Surroundings
from pisync_agent.doctor.way import WayChecks
from pisync_agent.errors import AgentError
from pisync_agent.outbox import files, integrity
from pisync_agent.service import spool_folder

TOTAL_S: Final = 10.0
"""Of the promised 15 seconds the rest is for the start of the program on a slow device."""
GATHER_S: Final = 5.0
"""How long the folder and the service may take to say what the examination is about."""


def _nothing(check: str) -> None:
    """Show no progress."""


def examine(
    home: Path,
    surroundings: Surroundings | None = None,
    *,
    seconds: float = TOTAL_S,
    on_step: Callable[[str], None] = _nothing,
) -> list[Finding]:
    """Return a finding for each of CHECKS, in their order, within `seconds`. `on_step` is called with each check."""
    around = surroundings or Surroundings()
    deadline = Deadline(seconds, around.monotonic)
    try:
        subject = Pending(lambda: gather(home)).result(deadline.left(GATHER_S))
    except TimeoutError:
        fault = f"{home} could not be read in {GATHER_S:.0f} s: the disk does not answer"
        subject = Subject(home=home, state_fault=fault, identity_fault=fault)
    way = WayChecks(subject, around, deadline)
    chains = (_Chain(DEVICE_CHECKS, device_checks(subject, around)), _Chain(NETWORK_CHECKS, way.findings()))
    found = _collect(chains, deadline, on_step)
    true_ms = around.now_ms() + (way.ahead_ms or 0)
    found += [outbox.check_backlog(subject, now_ms=true_ms), outbox.check_rejected(subject)]
    assert {each.check for each in found} == set(CHECKS)
    return in_order(found)


def device_checks(subject: Subject, around: Surroundings) -> Iterator[Finding]:
    """Examine the device itself."""
    home = subject.home
    try:
        facts = disk.disk_facts(home)
    except OSError as error:
        yield skipped("disk", f"{home}: {error.strerror}")
        device = ""
    else:
        yield disk.check_disk(facts, write_fault=subject.write_fault)
        device = facts.device
    yield disk.check_kernel(around.kernel_log(), device)
    yield folder.check_folder(home, _folder_facts(home), system=subject.system)
    yield outbox.check_outbox(subject, _integrity(home, around))
    yield service.check_service(subject, around.unit_state() if subject.system else None)
    yield service.check_socket(subject)
    yield folder.check_strays(folder.stray_outboxes(home))
    yield folder.check_spool(home / spool_folder.FOLDER, spool_folder.counts(home))
    yield service.check_enrollment(subject)


def _folder_facts(home: Path) -> folder.FolderFacts | OSError:
    try:
        return folder.folder_facts(home)
    except OSError as error:
        return error


def _integrity(home: Path, around: Surroundings) -> integrity.Integrity | AgentError | None:
    if not os.access(files.database(home), os.R_OK):
        return None
    try:
        return integrity.check(home, seconds=outbox.INTEGRITY_S, monotonic=around.monotonic)
    except AgentError as error:
        return error


@dataclass(frozen=True, kw_only=True, slots=True)
class _End:
    """A chain has ended; `error` if a check failed in a way that it should not."""

    error: Exception | None = None


class _Chain:
    """Checks one after another, in a thread that does not keep the process from ending."""

    def __init__(self, checks: Mapping[str, object], steps: Iterator[Finding]) -> None:
        self._checks = list(checks)
        self._steps = steps
        self.found: dict[str, Finding] = {}

    def start(self, results: "queue.SimpleQueue[tuple[_Chain, Finding | _End]]") -> None:
        def work() -> None:
            error: Exception | None = None
            try:
                for finding in self._steps:
                    results.put((self, finding))
            except Exception as failed:  # a fault of one check must not hide what the others found
                error = failed
            results.put((self, _End(error=error)))

        threading.Thread(target=work, daemon=True).start()

    @property
    def current(self) -> str | None:
        """The check that is being made."""
        return next((check for check in self._checks if check not in self.found), None)

    def complete(self, error: Exception | None) -> Iterator[Finding]:
        """Yield a finding for each check, also where the chain did not get so far."""
        yield from self.found.values()
        missing = [check for check in self._checks if check not in self.found]
        for check in missing[:1]:
            yield _unfinished(check) if error is None else _broken(check, error)
        for check in missing[1:]:
            yield skipped(check, f"the check `{missing[0]}` before it did not end")


def _unfinished(check: str) -> Finding:
    what = "The disk does not answer" if check in DEVICE_CHECKS else "This check did not end in time"
    return bad(check, f"{what}: the check was given up.", advice="Try again. If it stays so, restart the device.")


def _broken(check: str, error: Exception) -> Finding:
    return warn(
        check,
        "This check failed itself.",
        f"{type(error).__name__}: {error}",
        advice="Send the output of `pisync support` to the administrator.",
    )


def _collect(chains: tuple[_Chain, ...], deadline: Deadline, on_step: Callable[[str], None]) -> list[Finding]:
    """Run the chains to their end, or to the deadline."""
    results: queue.SimpleQueue[tuple[_Chain, Finding | _End]] = queue.SimpleQueue()
    errors: dict[_Chain, Exception | None] = {}
    ended = 0
    for chain in chains:
        chain.start(results)
    while ended < len(chains):
        on_step(", ".join(filter(None, (chain.current for chain in chains))))
        try:
            chain, result = results.get(timeout=max(0.001, deadline.left()))
        except queue.Empty:
            break
        if isinstance(result, _End):
            ended += 1
            errors[chain] = result.error
        else:
            chain.found[result.check] = result
    return [finding for chain in chains for finding in chain.complete(errors.get(chain))]
