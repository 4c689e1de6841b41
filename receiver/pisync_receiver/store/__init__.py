"""Where the receiver keeps everything: one asynchronous `Store`, one package an engine (`sqlite`, `postgres`).

`opening` finds the engine of an address; `reading` has the queries of both, `sql/` the SQL that they share.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from pisync_receiver.domain.submissions import Outcome, Submission
from pisync_receiver.store.acts import Acts
from pisync_receiver.store.learners import LearnerQueries
from pisync_receiver.store.notices import NoticeQueries
from pisync_receiver.store.reading import Queries
from pisync_receiver.store.retention import Retention


class Store(Queries, Acts, LearnerQueries, NoticeQueries, Retention):
    """Used on one event loop. Every method raises StoreUnusable when the database cannot be read or written."""

    @property
    @abstractmethod
    def writers(self) -> int:
        """How many groups can be written at once."""

    @abstractmethod
    async def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store all submissions in one durable transaction; return an outcome for each, in order, after the commit.

        Repeating a submission is safe. A submission that cannot be stored fails alone: its outcome is the exception.
        """

    @abstractmethod
    async def ready(self) -> None:
        """Write something small, durably."""

    @abstractmethod
    def connections(self) -> Mapping[str, tuple[int, int]]:
        """Count connections to a server: name -> (open, in use); empty where there is no server."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what is being written and free everything. Harmless twice."""
