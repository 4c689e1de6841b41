"""Parquet, written in row groups as the pages of a list come. Needs the extra `export`."""

import asyncio
import io
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from msgspec import Raw, inspect

from pisync_common.limits import MIB
from pisync_common.times import parse_ms
from pisync_receiver.errors import MissingExtra
from pisync_receiver.http.formats import Writer, bare, columns_of, one_line, reader_of

_GROUP_ROWS: Final = 20_000
_GROUP_BYTES: Final = 4 * MIB
"""A row group is written when its rows have this much JSON: it is what an export holds in memory."""
_INT64: Final = 2**63


async def open_parquet(rows: type) -> Writer:
    """Return a writer of a file with a column for each field of the struct `rows`. Raises MissingExtra."""
    try:
        return await asyncio.to_thread(_Parquet, rows)
    except ImportError as error:
        raise MissingExtra("export", error) from error


def arrow_type(kinds: Sequence[inspect.Type]) -> str:
    """Return the name of the type of a column: times are timestamps, nested values are their JSON text."""
    if any((getattr(kind, "extra_json_schema", None) or {}).get("format") == "date-time" for kind in kinds):
        return "timestamp"
    plain = {type(bare(kind)) for kind in kinds} - {inspect.NoneType}
    if plain == {inspect.BoolType}:
        return "bool"
    if plain == {inspect.IntType}:
        return "int64"
    return "double" if plain <= {inspect.IntType, inspect.FloatType} else "string"


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _integer(value: Any) -> int | None:
    """Values beyond 64 bits, which no version stores, are left out."""
    return value if isinstance(value, int) and -_INT64 <= value < _INT64 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    if isinstance(value, Raw):
        text = one_line(bytes(value)).decode()
        return None if text == "null" else text
    return value if isinstance(value, str) else None


_READ: Final = {"bool": _bool, "int64": _integer, "double": _number, "string": _text}


class _Sink(io.RawIOBase):
    """Collects what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


class _Parquet:
    """Everything that takes long runs in a thread, a row group at a time."""

    def __init__(self, rows: type) -> None:
        self._arrow = import_module("pyarrow")
        parquet = import_module("pyarrow.parquet")
        self._read = reader_of(rows)
        self._columns = {name: arrow_type(kinds) for name, kinds in columns_of(rows).items()}
        self._time = self._arrow.timestamp("ms", tz="UTC")
        self._schema = self._arrow.schema(
            [
                self._arrow.field(name, self._time if kind == "timestamp" else self._arrow.type_for_alias(kind))
                for name, kind in self._columns.items()
            ]
        )
        self._sink = _Sink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    async def write(self, page: bytes) -> tuple[bytes, int]:
        rows = self._read(page)
        self._rows += rows
        self._bytes += len(page)
        full = len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES
        return await asyncio.to_thread(self._flush) if full else b"", len(rows)

    async def end(self) -> bytes:
        return await asyncio.to_thread(self._close)

    def _flush(self) -> bytes:
        arrays = [
            self._times(values) if kind == "timestamp" else [*map(_READ[kind], values)]
            for kind, values in zip(self._columns.values(), zip(*self._rows, strict=True), strict=True)
        ]
        self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0
        return self._sink.take()

    def _times(self, texts: Sequence[str | None]) -> Any:
        try:
            return self._arrow.array(texts, self._arrow.string()).cast(self._time)
        except self._arrow.ArrowInvalid:  # a form of RFC 3339 that Arrow does not read, such as microseconds
            return [None if text is None else parse_ms(text) for text in texts]

    def _close(self) -> bytes:
        written = self._flush() if self._rows else b""
        self._writer.close()
        return written + self._sink.take()
