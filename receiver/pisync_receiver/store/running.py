"""What the classes of queries share: how a named query is run, and how its rows become structs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Row = tuple[Any, ...]
Values = Mapping[str, object]
Query = tuple[str, Values]
"""A named query, and its values by name; a list is an array."""
Decide = Callable[[list[list[Row]]], Sequence[Query]]
"""From the rows of each query that was asked to the statements to run: a name, and values by name."""
Sites = Sequence[str] | None
"""The only sites that the caller may see; None for all."""
T = TypeVar("T")


class QueryRunner(ABC):
    """Runs queries; each engine brings its own way, `_read`."""

    @abstractmethod
    async def _read(self, *queries: Query) -> list[list[Row]]:
        """Run named queries, all of them on one snapshot. Raises StoreUnusable; QueryTooLong after QUERY_S."""

    @abstractmethod
    async def act(self, reads: Sequence[Query], decide: Decide, *, lock: str | None = None) -> bool:
        """In one durable transaction: read, have `decide` say what to write, write it. The same shape as `write`, for
        the receiver's own work. Return False, with nothing read, while another receiver holds `lock`.

        `decide` gets the rows of each query, and returns named statements with their values; it must be pure, for it is
        called again when the transaction is.
        """

    async def _rows(self, query: str, **values: object) -> list[Row]:
        return (await self._read((query, values)))[0]


def build(kind: type[T], row: Row) -> T:
    """Build a row's struct from columns in the order of its fields."""
    return kind(**dict(zip(kind.__struct_fields__, row, strict=True)))  # type: ignore[attr-defined]


def listed(sites: Sites) -> list[str] | None:
    """Return sites as a query takes them."""
    return None if sites is None else list(sites)
