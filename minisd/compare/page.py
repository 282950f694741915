"""A report as one self-contained HTML page, readable on a phone and on a wide screen."""

import math
from html import escape
from pathlib import Path

from minisd.compare.hunt import Comparison
from minisd.compare.report import TABLE_HEAD, Report, call_label, row_texts

PAGE_STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
ERROR_COLOURS = (
    "#dfe6ee",
    "#fde9c9",
    "#f9c27f",
    "#ee8a4a",
    "#cf4a35",
    "#8f1d2c",
)  # from rounding to the largest errors


def page(report: Report) -> str:
    """The whole page."""
    reference, port = map(escape, report.labels)
    lines = [escape(line) for line in report.verdict()]
    state = "same" if report.is_equal else "first"
    sections = [
        f"<h1>{port} compared with {reference}</h1>",
        f'<div class="{state}"><p>{"</p><p>".join(lines)}</p></div>',
        heat_map(report),
        worst_values(report),
        histogram(report),
        missing(report),
        results_table(report),
    ]
    title = f"{port} compared with {reference}"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    return (
        f"<!doctype html><html lang=en><head>{head}<title>{title}</title>"
        f"<style>{PAGE_STYLE}</style></head><body>{''.join(sections)}</body></html>"
    )


def colour(row: Comparison) -> str:
    """The colour of an error: grey within the tolerance; a larger error has a darker colour."""
    if row.error <= row.tolerance:
        return ERROR_COLOURS[0]
    powers = (
        1 + math.log10(min(row.error, 1e6) / row.tolerance) / 1.5 if row.error == row.error else 5
    )
    return ERROR_COLOURS[min(int(powers), len(ERROR_COLOURS) - 1)]


def heat_map(report: Report) -> str:
    """The squares that show where the error is: one for each output, one group for each call."""
    numbers = sorted({row.number for row in report.rows})
    lines = []
    for number in numbers:
        squares = []
        for row in report.rows:
            if row.number == number:
                mark = ' class="marked"' if report.is_first(row) else ""
                title = escape(f"{call_label(row)}: {row.error:.1e}")
                squares.append(
                    f'<span{mark} style="background:{colour(row)}" title="{title}"></span>'
                )
        head = f"<p>Call {number + 1}</p>" if len(numbers) > 1 else ""
        lines.append(f'{head}<div class="map">{"".join(squares)}</div>')
    key = " ".join(
        f'<span style="background:{one};padding:0 .5rem">{text}</span>'
        for one, text in zip(
            ERROR_COLOURS, ("rounding", "1x", "30x", "1000x", "30000x", "more"), strict=True
        )
    )
    text = "One square for each output, in running order. A darker square has a larger error."
    return f"<h2>Where the error is</h2><p>{text} {key}</p>{''.join(lines)}"


def worst_values(report: Report) -> str:
    """Two tables: our values and their values around the largest difference."""
    if not report.worst:
        return ""
    parts = []
    for label, key in zip(report.labels, ("ours", "theirs"), strict=True):
        rows = "".join(
            "<tr>"
            + "".join(
                cell(value, (i, j) == tuple(report.worst["centre"])) for j, value in enumerate(line)
            )
            + "</tr>"
            for i, line in enumerate(report.worst[key])
        )
        parts.append(f'<p>{escape(label)}</p><div class="wide"><table>{rows}</table></div>')
    head = "<h2>The values around the largest difference</h2>"
    place = f"The largest difference is at index {report.worst['place']} of the output."
    return f"{head}<p>{place}</p>{''.join(parts)}"


def cell(value: float, worst: bool) -> str:
    return f"<td{' class=worst' if worst else ''}>{value:.5g}</td>"


def histogram(report: Report) -> str:
    """The bars that show, for the first module that differs, how many values differ how much."""
    if not report.histogram:
        return ""
    most = max(count for _, count in report.histogram) or 1
    bars = "".join(
        f'<div style="height:{100 * count / most:.1f}%" title="1e{power}: {count}"></div>'
        for power, count in report.histogram
    )
    first, last = report.histogram[0][0], report.histogram[-1][0]
    scale = f'<div class="scale"><span>1e{first}</span><span>1e{last}</span></div>'
    text = (
        "The output of the first module that differs. Each bar shows how many of its values have "
        "an error of about this size."
    )
    return f'<h2>How large the errors are</h2><p>{text}</p><div class="bars">{bars}</div>{scale}'


def missing(report: Report) -> str:
    lines = report.list_unaligned()
    if not lines:
        return ""
    head = "<h2>Parameters without a partner</h2>"
    return head + "".join(f"<p>{escape(line)}</p>" for line in lines)


def results_table(report: Report) -> str:
    """The table with one row for each output that was compared."""
    lines = []
    for row in report.rows:
        mark = ' class="marked"' if report.is_first(row) else ""
        cells = "".join(f"<td>{escape(one)}</td>" for one in row_texts(row))
        lines.append(f"<tr{mark}>{cells}</tr>")
    head = "".join(f"<th>{one}</th>" for one in TABLE_HEAD)
    text = (
        "Errors are relative to the spread of the reference's output. A module's own error arises "
        "in the module. Its inherited error came in with its inputs."
    )
    rows = "".join(lines)
    shown = f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    return f"<h2>All outputs</h2><p>{text}</p>{shown}"
