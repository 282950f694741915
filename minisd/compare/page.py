"""A report as one self-contained HTML page, readable on a phone and on a wide screen.

The page itself is in page.html, a template of jinja2.
"""

import math
from pathlib import Path

from jinja2 import Template

from minisd.compare.hunt import Comparison
from minisd.compare.report import TABLE_HEAD, Report, call_label, row_texts

TEMPLATE = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
ERROR_COLOURS = {  # from rounding to the largest errors
    "#dfe6ee": "rounding",
    "#fde9c9": "1x",
    "#f9c27f": "30x",
    "#ee8a4a": "1000x",
    "#cf4a35": "30000x",
    "#8f1d2c": "more",
}


def page(report: Report) -> str:
    """The whole page."""
    rows = [
        {
            "call": row.number + 1,
            "first": report.is_first(row),
            "colour": colour(row),
            "title": f"{call_label(row)}: {row.error:.1e}",
            "texts": row_texts(row),
        }
        for row in report.rows
    ]
    template = Template(TEMPLATE, autoescape=True)
    return template.render(report=report, rows=rows, head=TABLE_HEAD, colours=ERROR_COLOURS)


def colour(row: Comparison) -> str:
    """The colour of an error: grey within the tolerance; a larger error has a darker colour."""
    if row.error <= row.tolerance:
        return next(iter(ERROR_COLOURS))
    times = row.error / row.tolerance if math.isfinite(row.error) else math.inf
    return [*ERROR_COLOURS][int(min(1 + math.log10(times) / 1.5, len(ERROR_COLOURS) - 1))]
