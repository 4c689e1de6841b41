"""Which of the media types a route offers a caller wants (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

from pisync_receiver.errors import Problem


def choose(accept: bytes | None, offered: Sequence[str]) -> str:
    """The best offer; the first of equals, and where nothing was said. Raises Problem 406."""
    if accept is None:
        return offered[0]
    wanted = [_range(part) for part in accept.decode("latin-1").split(",") if part.strip()]
    best = max(offered, key=lambda offer: _quality(offer, wanted))
    if wanted and _quality(best, wanted) <= 0:
        raise Problem(406, "not_acceptable", f"this page comes as: {', '.join(offered)}")
    return best


def _range(text: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return media, float(value)
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(offer: str, wanted: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that fits."""
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for media, weight in wanted:
            if media == pattern:
                return weight
    return 0.0
