"""What the formats of an export have in common: how a page is read and what its values are."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw, inspect

_PLAIN: Final = (
    inspect.StrType,
    inspect.LiteralType,
    inspect.EnumType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.NoneType,
)


class Writer(Protocol):
    """Turns pages into an export's bytes. Not shared between exports."""

    async def write(self, page: bytes) -> tuple[bytes, int]:
        """Take a page as JSON; return what can be sent by now, and how many rows the page has."""

    async def end(self) -> bytes:
        """Return the rest."""


def columns_of(rows: type) -> dict[str, list[inspect.Type]]:
    """Return the fields of the struct of a row, as JSON names them, and the types that a value may have."""
    info = inspect.type_info(rows)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: _alternatives(field.type) for field in info.fields}


def reader_of(rows: type) -> Callable[[bytes], list[tuple[Any, ...]]]:
    """Return a function that reads a page: of each row its values in the order of the fields. A nested value is Raw. No
    value is checked against its type: a stored row never makes an export fail."""
    fields = [
        (name, Any if all(isinstance(kind, _PLAIN) for kind in map(bare, kinds)) else Raw, None)
        for name, kinds in columns_of(rows).items()
    ]
    row = msgspec.defstruct("Row", fields)
    decode = msgspec.json.Decoder(list[row]).decode  # type: ignore[valid-type]
    values = msgspec.structs.astuple
    return lambda page: [values(each) for each in decode(page)]


def bare(kind: inspect.Type) -> inspect.Type:
    """Return a type without what is said about it."""
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def one_line(json: bytes) -> bytes:
    """Return JSON without the line breaks that an event's data was sent with."""
    return msgspec.json.format(json, indent=-1) if b"\n" in json or b"\r" in json else json


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        return [part for each in kind.types for part in _alternatives(each)]
    if isinstance(kind, inspect.Metadata) and isinstance(kind.type, inspect.UnionType):
        return _alternatives(kind.type)
    return [kind]
