"""What an examination is about: the agent's folder, and what the service and the outbox say of themselves."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.errors import AgentError, NotAnswering, NotEnrolled
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.outbox.condition import Condition, inspect
from pisync_agent.outbox.faults import Fault
from pisync_agent.service import protocol, views

DEAD_COUNTED: Final = 1000
"""The most dead letters that are read for their reasons."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is known before the checks. `state` is None where neither the file nor the service shows it."""

    home: Path
    live: Mapping[str, Any] | None = None
    """What the service says of itself; None if none answers."""
    silent: str = ""
    """Why the service does not answer, though it runs."""
    barred: str = ""
    """Why this user may not ask the service."""
    identity: Identity | None = None
    identity_fault: str = ""
    """Why the identity cannot be used, or not by this user."""
    state: Mapping[str, Any] | None = None
    state_fault: str = ""
    hidden: bool = False
    """Whether the state is not shown only because this user may not read the file, and no service answers."""
    condition: Condition | None = None
    """The condition of the outbox's files; None where this user may not read them."""
    oldest: Mapping[str, Any] | None = None
    """The oldest pending event, without what a learner did."""
    dead: Mapping[str, int] = field(default_factory=dict)
    """Dead letters by the reason of their rejection."""

    @property
    def system(self) -> bool:
        """Whether this is the folder of the system's service."""
        return self.home == config.SYSTEM_HOME

    @property
    def restart(self) -> str:
        """How a person restarts the service, as the end of a sentence."""
        if self.system:
            return "restart the service: sudo systemctl restart pisync-agent"
        return "stop the process and start it again: pisync run"

    @property
    def write_fault(self) -> Mapping[str, Any] | None:
        """Why nothing can be recorded: as the service met it, else as the folder refuses a new file now."""
        said: Mapping[str, Any] | None = (self.live or {}).get("write_fault")
        if said is not None or self.condition is None or self.condition.writing:
            return said
        if self.condition.fault is Fault.NOT_PERMITTED:
            return None  # it may be the service's to write, and not this user's
        return {"fault": self.condition.fault, "detail": self.condition.detail}

    @property
    def url(self) -> str | None:
        """The receiver's address; None where it is unknown, or there is none."""
        if self.identity is not None:
            return self.identity.url
        url = None if self.state is None else self.state["url"]
        return url if isinstance(url, str) else None

    @property
    def outbox(self) -> Mapping[str, Any]:
        """The outbox's numbers; empty where they are unknown."""
        return {} if self.state is None else self.state["outbox"]


def gather(home: Path) -> Subject:
    """Ask service and files. Each wait for the service has its own short deadline."""
    found: dict[str, Any] = {"home": home}
    try:
        found["live"] = protocol.live_status(files.socket(home))
    except NotAnswering as error:
        found["silent"] = str(error)
    except PermissionError as error:
        found["barred"] = str(error)
    except OSError as error:
        found["silent"] = f"the service does not answer ({error.strerror or error})"
    try:
        found["identity"] = identities.load(home)
    except NotEnrolled as error:
        found["identity_fault"] = str(error)
    if os.access(files.database(home), os.R_OK):
        found["condition"] = inspect(home)
    return Subject(**found, **_queue(home))


def _queue(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with views.look(home) as view:
            found["state"] = view.state()
            outbox = found["state"]["outbox"]
            if outbox["waiting"]:
                found["oldest"] = next(iter(view.events(outbox["delivered"], 1, everything=False)), None)
            if 0 < outbox["dead"] <= DEAD_COUNTED:
                found["dead"] = Counter(str(row["code"]) for row in view.dead() if row["requeued_as"] is None)
    except (AgentError, OSError) as error:
        found["state_fault"] = str(error)
        found["hidden"] = getattr(error, "fault", None) == Fault.NOT_PERMITTED
    return found
