"""Enrollment without a person: a file is taken up at boot, and the service enrolls until it succeeds.

`take_up` is root's part: a boot partition is FAT, where every user can read the code, and the service cannot write. The
file is stored for the agent's user alone before it is deleted there, so a power cut loses nothing.

`ZeroTouch` is the service's part: a thread that lives while a file waits. It retries as sync runs are retried; a code
that is refused is tried again slowly, because an administrator may make it valid.
"""

import contextlib
import logging
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pisync_agent.client as client
import pisync_agent.identity as identities
from pisync_agent.clock import Clock
from pisync_agent.enrollment.enroll_file import (
    EnrollFile,
    device_id_of,
    load_pending,
    read_enroll_file,
    store_pending,
)
from pisync_agent.enrollment.enrolling import enroll_device, keep_authority
from pisync_agent.enrollment.machine import Machine
from pisync_agent.enrollment.state import PENDING, EnrollmentState, Kind, note_state
from pisync_agent.errors import AgentError, NotEnrolled, Refused
from pisync_agent.identity import Identity
from pisync_agent.outbox.files import sync_folder
from pisync_agent.sync.retry import RetryPolicy
from pisync_common.errors import RuleError

log = logging.getLogger(__name__)

BOOT_FILES: Final = tuple(
    Path(name + ending)
    for name in ("/boot/firmware/pisync-enroll.toml", "/boot/pisync-enroll.toml", "/etc/pisync/enroll.toml")
    for ending in ("", ".txt")  # which Windows adds, and hides
)
IGNORED: Final = "enroll-ignored.json"
"""What is set aside, in the agent's folder."""

REFUSED_S: Final = 3600.0
"""How long to wait, at least, after a refused code."""


def take_up(
    file: Path, home: Path, here: Machine, *, as_owner: Callable[[], contextlib.AbstractContextManager[None]]
) -> str:
    """Move an enrollment file into the agent's folder; return what became of it. Raises RuleError, OSError.

    A file that cannot be used stays where it is, for the person who corrects it. On a device that is enrolled already
    it is set aside: an identity never changes silently.
    """
    try:
        wanted = read_enroll_file(file)
        if wanted.device_id is not None:
            device_id_of(wanted.device_id, here)  # a number that this machine lacks is a fault of the file
    except RuleError as error:
        wrong = f"{file} cannot be used: {error}. Correct it, then: sudo pisync enroll-file {shlex.quote(str(file))}"
        with as_owner():
            note_state(home, EnrollmentState(kind="invalid", detail=wrong))
        raise RuleError(wrong) from error
    with as_owner():
        said = _store(file, home, wanted)
    try:
        file.unlink()
        sync_folder(file.parent)
    except OSError as error:
        left = f"{file} cannot be deleted ({error.strerror}): every user can read its code. Delete it"
        return f"{said}; {left}"
    return said


def _store(file: Path, home: Path, wanted: EnrollFile) -> str:
    enrolled = None
    with contextlib.suppress(NotEnrolled):
        enrolled = identities.load(home)
    if enrolled is None:
        store_pending(home, wanted)
        (home / identities.PROPOSAL_FILE).unlink(missing_ok=True)  # of an earlier file
        note_state(home, None)
        return f"{file} is taken up: this device enrolls at {wanted.receiver} as soon as it can"
    store_pending(home, wanted, name=IGNORED)
    said = f"{file} is set aside: this device is enrolled already, as {enrolled.device_id} at {enrolled.url}"
    note_state(home, EnrollmentState(kind="enrolled", detail=said))
    return said


@dataclass(kw_only=True)
class ZeroTouch:
    """See the module. `wake`, `link_up` and `stop` may be called from any thread."""

    home: Path
    here: Machine
    request: Callable[[EnrollFile, str | None, str | None], Identity]
    """Asks the receiver for an identity under a device id, trusting the authority in a file. Raises DeliveryError."""
    enrolled: Callable[[], None]
    """Called, in the thread, once the identity is stored."""
    policy: RetryPolicy
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _woken: bool = False
    _refused: bool = False
    _stopping: bool = False

    @classmethod
    def with_client(
        cls, home: Path, here: Machine, *, clock: Clock, policy: RetryPolicy, enrolled: Callable[[], None]
    ) -> "ZeroTouch":
        """Ask real receivers."""

        def request(wanted: EnrollFile, device_id: str | None, ca_file: str | None) -> Identity:
            return client.enroll(
                wanted.receiver,
                wanted.code,
                device_id=device_id,
                site=wanted.site,
                insecure_http=wanted.insecure_http,
                ca_file=ca_file,
                clock=clock,
            )

        return cls(home=home, here=here, request=request, enrolled=enrolled, policy=policy)

    def link_up(self) -> None:
        """Try now, because a link has come up; but not with a code that the receiver has refused."""
        if not self._refused:
            self.wake()

    def wake(self) -> None:
        """Try now: at start, and when a file was taken up."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()
            if self._thread is None and not self._stopping and (self.home / PENDING).exists():
                self._woken = False
                self._thread = threading.Thread(target=self._work, name="enroll", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _work(self) -> None:
        failures = 0
        while not self._stopping:
            failures += 1
            wait = self._attempt(failures)
            with self._changed:
                if wait is None and not self._woken:
                    self._thread = None
                    return
                if self._changed.wait_for(lambda: self._woken or self._stopping, wait):
                    failures = 0
                self._woken = False

    def _attempt(self, failures: int) -> float | None:
        """Try once; return the seconds to wait before the next attempt, None if there is nothing more to do."""
        wait = self.policy.delay(failures)
        self._refused = False
        try:
            if (wanted := load_pending(self.home)) is None:
                return None
            known = self._identity()
            identity = known or self._enroll(wanted)
        except Refused as error:
            self._refused = True
            return self._note("refused", f"the enrollment file's code was refused: {error}", wait + REFUSED_S)
        except RuleError as error:
            return self._note("invalid", f"the enrollment file cannot be used: {error}", None)
        except (AgentError, OSError) as error:
            wait = self.policy.delay(failures, getattr(error, "retry_after", None))
            return self._note("waiting", f"waiting to enroll: {error}", wait)
        log.info("enrolled as %s at %s", identity.device_id, identity.url)
        try:
            (self.home / PENDING).unlink(missing_ok=True)
            note_state(self.home, None)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", self.home / PENDING, error)
            if known is not None:
                return None  # otherwise the news would lead to this file again, for ever
        self.enrolled()
        return None

    def _identity(self) -> Identity | None:
        with contextlib.suppress(NotEnrolled):  # a damaged identity is replaced
            return identities.load(self.home)
        return None

    def _enroll(self, wanted: EnrollFile) -> Identity:
        ca = None if wanted.ca is None else wanted.ca.encode()
        ca_file = None if ca is None else str(keep_authority(self.home, ca))
        device_id = None
        if wanted.device_id is not None:
            pattern = wanted.device_id
            device_id = identities.proposed_id(self.home, self.here, lambda: device_id_of(pattern, self.here))

        def ask(device_id: str | None) -> Identity:
            return self.request(wanted, device_id, ca_file).at(wanted.receiver, *wanted.also)

        return enroll_device(
            self.home, wanted.receiver, ask=ask, here=self.here, current=None, device_id=device_id, ca=ca
        )

    def _note(self, kind: Kind, detail: str, wait: float | None) -> float | None:
        log.warning("%s", detail)
        with contextlib.suppress(OSError):
            note_state(self.home, EnrollmentState(kind=kind, detail=detail))
        return wait
