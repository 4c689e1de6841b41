"""What can go wrong on the device, each with a stable `code` and a text that says what to do.

PiSyncError
 └── AgentError
      ├── InvalidEvent          the event breaks a rule; nothing was recorded; correct the event (also a RuleError)
      ├── OutboxFull            no room; nothing was recorded; try again after a sync
      ├── StoreUnusable         the outbox cannot be opened or written; nothing was recorded
      │    └── NotAnswering     the process that writes the outbox is silent; the text says what became of the request
      ├── AlreadyEnrolled       the device has another identity; the text names the flag to change it (also a RuleError)
      ├── NotEnrolled           no identity yet; recording works, delivery needs `pisync enroll`
      └── DeliveryError         an attempt to reach the receiver failed; everything is kept; can be retried
           ├── Unreachable      no answer from the receiver: kinds dns connect timeout tls clock portal
           ├── Refused          the receiver refused this device (401, 403): kind auth
           ├── Declined         the receiver itself will never take this request (its own 4xx): kind http_4xx
           ├── TooLarge         413: halve the batch: kind http_4xx
           ├── Overloaded       429 or 503: wait `retry_after` seconds: kind http_4xx or http_5xx
           └── BadAnswer        any other answer: kind http_4xx or http_5xx
"""

from typing import ClassVar

from pisync_common.errors import PiSyncError, RuleError


class AgentError(PiSyncError):
    """Any error that the agent shows to its user."""

    code: ClassVar[str] = "agent_error"
    fault: str | None = None
    """What is wrong with the outbox's files, where that is known: a `faults.Fault`."""
    uncertain: bool = False
    """Whether the event may have been recorded all the same; its text says so, too."""


class InvalidEvent(AgentError, RuleError):
    """The event breaks a rule; nothing was recorded."""

    code = "invalid_event"


class OutboxFull(AgentError):
    """There is no room for the event; nothing was recorded, everything recorded before is kept."""

    code = "outbox_full"


class StoreUnusable(AgentError):
    """The outbox cannot be opened, read or written; nothing was recorded."""

    code = "store_unusable"


class NotAnswering(StoreUnusable, TimeoutError):
    """The process that writes the outbox runs and does not answer. The text says what became of the request."""

    code = "not_answering"


class AlreadyEnrolled(AgentError, RuleError):
    """The device has, or had, another identity: nothing was changed, and its text names the flag that changes it."""

    code = "already_enrolled"


class NotEnrolled(AgentError):
    """The device has no identity yet."""

    code = "not_enrolled"


class DeliveryError(AgentError):
    """An attempt to deliver failed; everything is kept. `kind` is one of `models.ERROR_CODES`."""

    code = "delivery_failed"

    def __init__(self, detail: str, *, kind: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.retry_after = retry_after
        """Seconds the receiver asked for, already capped; None if it did not ask."""


class Unreachable(DeliveryError):
    """No answer from the receiver itself: dns, connect, timeout, tls, clock or portal."""

    code = "unreachable"


class Refused(DeliveryError):
    """The receiver refused this device's token (401, 403). Nothing is dropped; the credentials stay."""

    code = "refused"

    def __init__(self, detail: str, *, kind: str, problem: str | None = None) -> None:
        super().__init__(detail, kind=kind)
        self.problem = problem
        """The code of the receiver's problem document, if it gave one."""


class Declined(DeliveryError):
    """The receiver itself understood the request and will never take it: a 4xx with its own problem document."""

    code = "declined"


class TooLarge(DeliveryError):
    """413: send less at once."""

    code = "too_large"


class Overloaded(DeliveryError):
    """429 or 503: the receiver, or a gateway before it, asks to wait."""

    code = "overloaded"


class BadAnswer(DeliveryError):
    """An answer that is not a receipt and none of the above."""

    code = "bad_answer"
