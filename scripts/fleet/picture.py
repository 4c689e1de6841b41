"""A picture of a fleet's return, as SVG."""

from pathlib import Path

import pygal  # type: ignore[import-untyped]
from pygal.style import CleanStyle  # type: ignore[import-untyped]

from fleet.run import Seen


def draw(seen: Seen, title: str, file: Path) -> None:
    """Draw events offered and accepted, and requests refused, second by second."""
    seconds = range(int(seen.drained_s) + 1)
    style = CleanStyle(font_family="sans-serif", colors=("#b35900", "#1b6e3c", "#7a1f1f"))
    chart = pygal.Line(
        title=title, x_title="seconds since the first link came up", y_title="events a second", style=style,
        show_dots=False, width=900, height=420, x_labels_major_every=max(1, len(seconds) // 10),
        show_minor_x_labels=False, legend_at_bottom=True, truncate_label=-1, js=[],
        secondary_range=(0, max(seen.refused.values(), default=1)),
    )  # fmt: skip
    chart.x_labels = [str(second) for second in seconds]
    chart.add("events offered", [seen.offered[second] for second in seconds])
    chart.add("events accepted", [seen.accepted[second] for second in seconds])
    chart.add("requests refused (right)", [seen.refused[second] for second in seconds], secondary=True)
    file.write_bytes(chart.render(is_unicode=False))
