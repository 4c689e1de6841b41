"""Who did what: the actor that acts carry."""

from msgspec import Struct


class Actor(Struct, frozen=True, kw_only=True):
    """Who does something, as the audit log names them."""

    name: str
    token_id: int | None = None
    """The token that was used; of a session, the token that opened it."""
    address: str | None = None
    """Where the request came from."""
