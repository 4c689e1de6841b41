"""What can go wrong in the cloud.

PiSyncError
 └── ReceiverError
      ├── StoreUnusable        the database cannot be opened, read or durably written
      │    ├── SchemaMismatch  the schema is older (run `migrate`) or newer (run a newer program)
      │    ├── QueryTooLong    a query took too long and was given up; nothing is wrong with the database
      │    └── DatabaseLost    the open file was moved, replaced or damaged; logged once, when it was found out
      ├── EnrollmentRefused    the code is unknown, expired, used up or meant for another device
      ├── DeviceIdTaken        another device has this id; an admin's consent is needed
      ├── UnknownToken         no token has this id
      ├── SignInRefused        this token signs no one in
      ├── WrongUsage           the command line cannot be carried out as it is
      ├── NotFound             the database holds no such thing
      ├── UnknownCode          no enrollment code has this id
      ├── UnknownDevice        no device has this id
      ├── UnknownLearner       nothing that is stored names this learner
      ├── ErasuresFileUnusable the file of erasures cannot be read or written
      ├── TooManyStreams       a device has begun as many streams as it may
      ├── BadCursor            a query's cursor is not one it gave out
      ├── Overloaded           the intake is full; nothing was stored; come back after `retry_after`
      ├── CannotListen         an address or a socket's path is in use or not allowed
      ├── MissingExtra         a library is not installed that only some need
      ├── Unavailable          something a worker needs is away for the moment; it is tried again, nothing was lost
      │    └── DatabaseUnavailable
      └── Problem              an answer for the caller: status, stable code, detail (RFC 9457)
"""

from typing import ClassVar

from pisync_common.errors import PiSyncError


class ReceiverError(PiSyncError):
    """Anything the receiver reports."""

    code: ClassVar[str] = "receiver_error"


class StoreUnusable(ReceiverError):
    """The database cannot be opened, read or durably written."""

    code = "store_unusable"


class SchemaMismatch(StoreUnusable):
    """The database's schema is not the one this program knows."""

    code = "schema_mismatch"


class QueryTooLong(StoreUnusable):
    """A query took too long and was given up."""

    code = "query_too_long"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer took over {seconds:g} s to find, so the search was given up; ask for less: one device or "
            "learner, or less time (since, until)"
        )


class DatabaseLost(StoreUnusable):
    """The file that is open was moved, replaced or damaged. It was logged when that was found out."""

    code = "store_unusable"


class EnrollmentRefused(ReceiverError):
    """The enrollment code does not open anything (any more)."""

    code = "enrollment_code"


class DeviceIdTaken(ReceiverError):
    """Another device has the wanted id, and the code was not made for it."""

    code = "device_id_taken"


class UnknownToken(ReceiverError):
    """No token has this id."""

    code = "unknown_token"


class SignInRefused(ReceiverError):
    """The token does not sign a person in."""

    code = "sign_in"


class WrongUsage(ReceiverError):
    """The command line cannot be carried out as it is."""

    code = "wrong_usage"


class NotFound(ReceiverError):
    """The database holds no such thing."""

    code = "not_found"


class UnknownCode(ReceiverError):
    """No enrollment code has this id."""

    code = "unknown_code"


class UnknownDevice(ReceiverError):
    """No device has this id."""

    code = "unknown_device"


class UnknownLearner(ReceiverError):
    """Nothing that is stored names this learner."""

    code = "unknown_learner"


class ErasuresFileUnusable(ReceiverError):
    """The file that remembers erasures outside the database cannot be read or written."""

    code = "erasures_file"


class TooManyStreams(ReceiverError):
    """A device has begun as many streams as it may; nothing of the batch was stored."""

    code = "too_many_streams"


class BadCursor(ReceiverError):
    """A cursor that no page of this query gave."""

    code = "bad_cursor"


class Overloaded(ReceiverError):
    """The intake holds as much as it may; nothing was stored."""

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        """Whole seconds, jitter included."""


class CannotListen(ReceiverError):
    """The receiver cannot bind to an address or a socket's path."""

    code = "cannot_listen"


class MissingExtra(ReceiverError):
    """A library is not installed that only some need."""

    code = "missing_extra"

    def __init__(self, extra: str, error: ImportError) -> None:
        super().__init__(
            f"{error.name or extra} is not installed, so this cannot run; nothing was changed; install PiSync's wheel "
            f"with its extra {extra!r}"
        )


class Unavailable(ReceiverError):
    """Something a worker needs is away for the moment. The text holds no secret and says what is kept."""

    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer; the transaction under way has changed nothing."""

    code = "database_unavailable"


class Problem(ReceiverError):
    """An answer of `application/problem+json`. Raised anywhere below a route, rendered in one place."""

    code = "problem"

    def __init__(self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.problem_code = code
        self.detail = detail
        self.headers = headers or {}
