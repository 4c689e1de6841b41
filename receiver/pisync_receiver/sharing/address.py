"""Where a Redis is, as a setting names it."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

_SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True, kw_only=True)
class RedisUrl:
    """A Redis. Its text never holds the password."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redis_url(value: str) -> RedisUrl:
    """Raises ValueError whose text completes the sentence "the value is …"."""
    wrong = "not the address of a Redis, such as redis://redis.example:6379/0 or rediss://:password@redis.example/0"
    try:
        parts = urlsplit(value)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        usable = parts.scheme in _SCHEMES and bool(place) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ValueError(wrong) from error
    number = "" if parts.scheme == "unix" else parts.path.removeprefix("/")
    if not usable or not (number == "" or (number.isascii() and number.isdecimal())) or not value.isprintable():
        raise ValueError(wrong)
    return RedisUrl(url=value)
