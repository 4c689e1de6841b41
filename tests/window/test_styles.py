"""Colours of the pages: every text has a contrast of 4.5:1 or more on each ground that it stands on (WCAG 1.4.3)."""

import re
from typing import Final

import pytest

from pisync_receiver.window.statics import FOLDER

CSS: Final = (FOLDER / "app.css").read_text()
GROUNDS: Final = ("ground", "surface")
TEXTS: Final = ("text", "muted", "accent", "well", "failing", "silent", "new", "retired")
FILLED: Final = (("on-accent", "accent"), ("surface", "failing"), ("text", "mark"))
LEAST: Final = 4.5


def schemes() -> dict[str, dict[str, str]]:
    """Return the colours of the light and the dark scheme."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in blocks)
    return {"light": light, "dark": light | dark}


def luminance(colour: str) -> float:
    """Return the relative luminance that WCAG defines."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_every_ground(scheme: str) -> None:
    colours = schemes()[scheme]
    pairs = [(text, ground) for text in TEXTS for ground in GROUNDS] + list(FILLED)
    weak = {pair: ratio for pair in pairs if (ratio := contrast(colours[pair[0]], colours[pair[1]])) < LEAST}
    assert not weak


def test_styles_know_no_left_and_right() -> None:
    """Pages in Arabic run from right to left: only logical properties turn with them."""
    assert re.findall(r"[\s;{](?:margin|padding|border|inset)?-?(?:left|right)\s*:", CSS) == []
    assert re.findall(r"(?:text-align|float): (?:left|right)", CSS) == []
