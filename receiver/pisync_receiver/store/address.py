"""Where a database is, as a setting names it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pisync_common.settings import path

SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql", "postgres")


@dataclass(frozen=True, kw_only=True)
class PostgresUrl:
    """A PostgreSQL database. Its text never holds the password."""

    conninfo: str = field(repr=False)
    """As libpq takes it: a URL, password included."""

    def __str__(self) -> str:
        parts = urlsplit(self.conninfo)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


Address = Path | PostgresUrl
"""A database file, or a PostgreSQL database."""


def address(url: str) -> Address:
    """What a database URL names. Raises ValueError whose text completes the sentence "the value is …"."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in _POSTGRES:
        if not rest or any(mark in url for mark in ("\0", " ", "\n")):
            raise ValueError("not the address of a PostgreSQL database, such as postgresql://pisync@db.example/pisync")
        return PostgresUrl(conninfo=url)
    name = url.removeprefix(SQLITE)
    if name == url or not name or name.startswith(":memory:") or "?" in name or "\0" in name:
        raise ValueError(
            "not the address of a database, such as sqlite:////var/lib/pisync/receiver.db "
            "or postgresql://pisync@db.example/pisync"
        )
    return path(name)


def url_of(place: Address) -> str:
    """The URL of an address; without its password."""
    return f"{SQLITE}{place}" if isinstance(place, Path) else str(place)
