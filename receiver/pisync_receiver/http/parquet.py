"""Parquet, written in row groups as the pages of a list come. Needs the extra `export`."""

import asyncio
import io
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

import msgspec
from msgspec import Raw, inspect

from pisync_common.limits import MIB
from pisync_common.times import parse_ms
from pisync_receiver.errors import MissingExtra
from pisync_receiver.http.formats import Writer, one_line

_GROUP_ROWS: Final = 20_000
_GROUP_BYTES: Final = 16 * MIB
"""A row group is written when its rows have this much JSON: it is what an export holds in memory."""
_INT64: Final = 2**63

_cells = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_any = msgspec.json.Decoder().decode
_Column = tuple[str, Callable[[Raw], Any]]
"""The name of an Arrow type, and how a value's JSON is read."""


async def open_parquet(rows: type) -> Writer:
    """Return a writer of a file with a column for each field of the struct `rows`. Raises MissingExtra."""
    try:
        return await asyncio.to_thread(_Parquet, columns_of(rows))
    except ImportError as error:
        raise MissingExtra("export", error) from error


def columns_of(rows: type) -> dict[str, _Column]:
    """Return how each field of a struct is stored: times as timestamps, nested values as their JSON text."""
    info = inspect.type_info(rows)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: _column(field.type) for field in info.fields}


def _column(kind: inspect.Type) -> _Column:
    parts = [part for part in _parts(kind) if not isinstance(part, inspect.NoneType)]
    if any((getattr(part, "extra_json_schema", None) or {}).get("format") == "date-time" for part in parts):
        return "timestamp[ms]", _time
    plain = {type(part.type if isinstance(part, inspect.Metadata) else part) for part in parts}
    if plain == {inspect.BoolType}:
        return "bool", _any
    if plain == {inspect.IntType}:
        return "int64", _integer
    if plain <= {inspect.IntType, inspect.FloatType}:
        return "double", _number
    if plain <= {inspect.StrType, inspect.LiteralType, inspect.EnumType}:
        return "string", _any
    return "string", _json


def _parts(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        return [part for each in kind.types for part in _parts(each)]
    return [kind]


def _time(value: Raw) -> int | None:
    text = _any(value)
    return None if text is None else parse_ms(text)


def _integer(value: Raw) -> int | None:
    """Values beyond 64 bits, which no version stores, are left out."""
    number = _any(value)
    return number if isinstance(number, int) and -_INT64 <= number < _INT64 else None


def _number(value: Raw) -> float | None:
    number = _any(value)
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else None


def _json(value: Raw) -> str | None:
    text = one_line(bytes(value)).decode()
    return None if text == "null" else text


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

    def __init__(self, columns: Mapping[str, _Column]) -> None:
        pyarrow = import_module("pyarrow")
        parquet = import_module("pyarrow.parquet")
        types = {"timestamp[ms]": pyarrow.timestamp("ms", tz="UTC")}
        fields = [
            pyarrow.field(name, types.get(kind) or pyarrow.type_for_alias(kind)) for name, (kind, _) in columns.items()
        ]
        self._table = pyarrow.Table
        self._schema = pyarrow.schema(fields)
        self._columns = columns
        self._sink = _Sink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[dict[str, Raw]] = []
        self._bytes = 0

    async def write(self, page: bytes) -> tuple[bytes, int]:
        rows = _cells(page)
        self._rows += rows
        self._bytes += len(page)
        full = len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES
        return await asyncio.to_thread(self._flush) if full else b"", len(rows)

    async def end(self) -> bytes:
        return await asyncio.to_thread(self._close)

    def _flush(self) -> bytes:
        columns = {
            name: [None if (value := row.get(name)) is None else read(value) for row in self._rows]
            for name, (_, read) in self._columns.items()
        }
        self._writer.write_table(self._table.from_pydict(columns, schema=self._schema))
        self._rows, self._bytes = [], 0
        return self._sink.take()

    def _close(self) -> bytes:
        written = self._flush() if self._rows else b""
        self._writer.close()
        return written + self._sink.take()
