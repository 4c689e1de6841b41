"""What a worker waits for and tries again.

ReceiverError
 ├── Unavailable                see `pisync_receiver.errors`
 │    ├── PublisherUnavailable  the broker is away, or did not confirm
 │    └── ServiceUnavailable    a notification service did not take a notice
 └── MissingExtra               a library is not installed
"""

from pisync_receiver.errors import ReceiverError, Unavailable


class PublisherUnavailable(Unavailable):
    """The broker is away, or has not confirmed; the position stays, and the same messages go again."""

    code = "publisher_unavailable"


class ServiceUnavailable(Unavailable):
    """A notification service did not take a notice; it waits in the database."""

    code = "service_unavailable"


class MissingExtra(ReceiverError):
    """A library is not installed that only some need."""

    code = "missing_extra"

    def __init__(self, extra: str, error: ImportError) -> None:
        super().__init__(
            f"{error.name or extra} is not installed; nothing was changed. Install it: pip install 'pisync[{extra}]'"
        )
