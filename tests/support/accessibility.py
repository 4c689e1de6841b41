"""What axe-core finds on a page: WCAG 2.2, level AA."""

from typing import Any, Final

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page

TAGS: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def violations(page: Page) -> list[Any]:
    """Return what axe-core finds in light, and which colours it finds too weak in dark."""
    found = (
        Axe().run(page, options={"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": TAGS}}).response
    )
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("axe.run({resultTypes: ['violations'], runOnly: ['color-contrast']})")
    page.emulate_media(color_scheme="light")
    rules = found["violations"] + dark["violations"]
    return [(rule["id"], [node["html"][:200] for node in rule["nodes"][:3]]) for rule in rules]
