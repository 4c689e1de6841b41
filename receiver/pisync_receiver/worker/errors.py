"""What a worker waits for and tries again.

ReceiverError
 └── Unavailable                see `pisync_receiver.errors`
      ├── PublisherUnavailable  the broker is away, or did not confirm
      └── ServiceUnavailable    a notification service did not take a notice
"""

from pisync_receiver.errors import Unavailable


class PublisherUnavailable(Unavailable):
    """The broker is away, or has not confirmed; the position stays, and the same messages go again."""

    code = "publisher_unavailable"


class ServiceUnavailable(Unavailable):
    """A notification service did not take a notice; it waits in the database."""

    code = "service_unavailable"
