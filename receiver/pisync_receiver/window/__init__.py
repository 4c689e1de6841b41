"""The admin's window: pages for people, rendered from answers of the API."""

from pisync_receiver.http.routing import Route
from pisync_receiver.window import sign_in


def table() -> list[Route]:
    """Return the row of every page."""
    return [*sign_in.ROUTES]
