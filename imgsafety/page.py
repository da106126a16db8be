"""The figures of one run, or of two, as one self-contained HTML page.

In: what `report.summarise`, `list_flagged` and `compare` return. Out: HTML that opens from disk, prints, and asks the network for
nothing. What a reader would get wrong: no picture is shown, ever; and every name on the page may be an attack, so the template
escapes all text, data goes in as JSON without `<`, and a content policy forbids all loading.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from imgsafety.errors import SetupError
from imgsafety.report import FLAGGED_COLUMNS, percent, places

# Colours that the page replaces by its own, so that one drawing serves light, dark and paper.
INK, BAR, MARK = "#010101", "#020202", "#030303"
PAGE_COLOURS = {INK: "currentColor", BAR: "var(--bar)", MARK: "var(--mark)"}
AXES = {"minimal_attire": "minimal attire score", "minor": "minor score, where people are seen", "age": "apparent age in years"}


def to_html(
    summaries: Sequence[Mapping[str, Any]],
    flagged: Sequence[Sequence[Sequence[Any]] | None],
    changes: Mapping[str, Any] | None = None,
) -> str:
    """Make the page. flagged: the rows to list of each run, or none for no list. Raises `SetupError` without the extra `report`."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as problem:
        raise SetupError("a report as HTML needs more packages: pip install 'imgsafety[report]'") from problem
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "thousands": "{:,}".format, "points": points}
    plots = [draw_histograms(summary, f"run{number}-") for number, summary in enumerate(summaries)]
    lists = [None if rows is None else {"columns": FLAGGED_COLUMNS, "rows": rows} for rows in flagged]
    runs = list(zip(summaries, plots, lists, strict=True))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("page.html.jinja").render(runs=runs, changes=changes, made=made)


def points(difference: float) -> str:
    """A difference of shares as text, in percentage points with its sign."""
    return f"{100 * difference:+.{places(100 * difference)}f}".replace("-", "−")


def draw_histograms(summary: Mapping[str, Any], prefix: str) -> str:
    """Draw the histograms with the policy's thresholds, as SVG whose text is text and whose colours are the page's.

    prefix: of all its ids, of which a page may have no two alike.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise SetupError("a report as HTML needs more packages: pip install 'imgsafety[report]'") from problem
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "imgsafety", "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with rc_context(settings):
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        for axes, (name, counts) in zip(figure.subplots(1, 3), summary["histograms"].items(), strict=True):
            _draw(axes, name, counts, summary["thresholds"].get(name))
        figure.axes[0].set_ylabel("pictures (log scale)")
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    svg = file.getvalue()
    for colour, own in PAGE_COLOURS.items():
        svg = svg.replace(colour, own)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg[svg.index("<svg") :])


def _draw(axes: Any, name: str, counts: Sequence[int], threshold: float | None) -> None:
    width = 1 if name == "age" else 1 / len(counts)
    axes.bar([index * width for index in range(len(counts))], counts, width, align="edge", color=BAR)
    axes.set(xlabel=AXES[name], xlim=(0, len(counts) * width), yscale="log", ylim=(0.7, max(10, 2 * max(counts))))
    axes.spines[["top", "right"]].set_visible(False)
    if threshold is not None:
        axes.axvline(threshold, color=MARK, linestyle="--", label=f"threshold {threshold:g}")
        axes.legend(frameon=False, loc="upper right")
