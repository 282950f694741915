"""Figures made of numbers: curves, bars, heat maps, words on a plane, arrows."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from minisd.teaching.plot import canvas
from minisd.teaching.plot.canvas import COLOURS, INK, PALE

DASHES = ["-", "--", "-.", ":"]
Curve = Sequence[float] | tuple[Sequence[float], Sequence[float]]


@canvas.with_style
def lines(
    curves: dict[str, Curve],
    x_label: str = "",
    y_label: str = "",
    log: str = "",
    marks: bool = False,
    height: int = 280,
) -> Figure:
    """Curves with their names at their right ends: a loss, the noise levels, error against steps.

    curves: by name, y alone or (x, y)    log: "x", "y" or "xy"
    marks: few points: a dot and a tick at each
    """
    figure, (axes,) = canvas.panels(1, height)
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    ends = []
    for index, (name, curve) in enumerate(curves.items()):
        x, y = curve if isinstance(curve, tuple) else (range(len(curve)), curve)
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        colour, dash = COLOURS[index % 7], DASHES[index // 7 if marks else index % 4]
        axes.plot(x, y, dash, color=colour, marker="o" if marks else None, markersize=5)
        ends.append((name, y[np.isfinite(y)][-1], colour))
    if marks:
        axes.set_xticks(sorted({float(each) for line in axes.lines for each in line.get_xdata()}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    elif "x" not in log and all((line.get_xdata() % 1 == 0).all() for line in axes.lines):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=PALE, linewidth=0.8)
    if len(ends) > 1:
        name_ends(axes, ends)
    return figure


def name_ends(axes: Axes, ends: list[tuple[str, float, str]]) -> None:
    """Write each curve's name beside its end, names pushed apart where they would meet."""
    axes.figure.draw_without_rendering()
    tall = axes.bbox.height
    heights = [axes.transAxes.inverted().transform((0, y))[1] for y in to_pixels(axes, ends)]
    apart = 16 / tall
    order = sorted(range(len(ends)), key=heights.__getitem__)
    for below, above in zip(order, order[1:]):
        heights[above] = max(heights[above], heights[below] + apart)
    overshoot = max(0.0, max(heights) - 1)
    for (name, _, colour), y in zip(ends, heights):
        axes.text(1.02, y - overshoot, name, color=colour, transform=axes.transAxes, va="center")


def to_pixels(axes: Axes, ends: list[tuple[str, float, str]]) -> list[float]:
    left = axes.get_xlim()[0]
    return [axes.transData.transform((left, value))[1] for _, value, _ in ends]


@canvas.with_style
def bars(
    values: dict[str, float | Sequence[float]],
    label: str = "",
    parts: Sequence[str] = (),
    form: str = "{:.2f}",
) -> Figure:
    """Lying bars, one for each name, with its number; or each made of parts, side by side.

    values: a number per name, or one number for each of `parts`    form: how numbers are written
    """
    figure, (axes,) = canvas.panels(1, 60 + 24 * len(values) + 24 * bool(parts))
    rows = np.arange(len(values))
    table = np.array([np.atleast_1d(value) for value in values.values()], dtype=float)
    left = np.zeros(len(values))
    for index, column in enumerate(table.T):
        name = parts[index] if parts else None
        axes.barh(rows, column, left=left, color=COLOURS[index % 7], label=name, height=0.75)
        left = left + column
    if parts:
        figure.legend(loc="outside upper center", ncols=len(parts), frameon=False)
    else:
        for row, value in enumerate(table[:, 0]):
            how = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(form.format(value), (max(value, 0), row), **how)
        axes.margins(x=0.15)
    axes.set_yticks(rows, list(values))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure


@canvas.with_style
def heat(
    matrix: Tensor,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    label: str = "",
    signed: bool = False,
    numbers: bool | None = None,
    form: str = "{:.2f}",
) -> Figure:
    """A matrix as colours: how alike words are, who looks at whom, where two tensors differ.

    signed: a scale with white at 0, else from the least (dark) to the most (yellow)
    numbers: written into the squares; None: where there is room for them
    """
    values = matrix.detach().float().cpu().numpy()
    n, m = values.shape
    figure, (axes,) = canvas.panels(1, int(min(480, 120 + max(26, 200 // n) * n)))
    peak = abs(values).max() or 1.0
    scale = {"cmap": "RdBu_r", "vmin": -peak, "vmax": peak} if signed else {"cmap": "viridis"}
    image = axes.imshow(values, aspect="auto", **scale)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    if max(map(len, columns), default=0) * 7.5 > 330 / m:
        axes.tick_params(axis="x", rotation=60)
    if numbers if numbers is not None else m <= 8 and n <= 14:
        write_numbers(axes, values, image, form)
    figure.colorbar(image, label=label)
    return figure


def write_numbers(axes: Axes, values: np.ndarray, image: object, form: str) -> None:
    """Each value in its square, white on dark and black on light."""
    for (row, column), value in np.ndenumerate(values):
        light = np.dot(image.to_rgba(value)[:3], (0.3, 0.6, 0.1)) > 0.5
        how = {"ha": "center", "va": "center", "color": "black" if light else "white"}
        axes.text(column, row, form.format(value), **how)


def principal_components(vectors: Tensor, dimensions: int = 2) -> Tensor:
    """The vectors on the axes along which they differ most (principal components), signs fixed.

    vectors: n d    returns: n dimensions
    """
    centred = vectors.detach().double().cpu() - vectors.detach().double().cpu().mean(dim=0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:dimensions]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return centred @ (axes * largest.sign()).T


@canvas.with_style
def embedding_map(
    vectors: Tensor, words: Sequence[str], groups: Sequence[int] | None = None, height: int = 380
) -> Figure:
    """Words as points of a plane, near where their vectors are alike (as far as a plane can tell).

    vectors: n d    groups: a number per word, for its colour
    """
    figure, (axes,) = canvas.panels(1, height)
    points = principal_components(vectors).numpy()
    colours = [COLOURS[group % 7] for group in groups or [0] * len(words)]
    axes.scatter(*points.T, c=colours, s=36)
    axes.margins(0.15)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.draw_without_rendering()  # fixes where points lie, so that words can be kept apart
    taken: list[tuple[float, float, int]] = []
    for word, point, colour in zip(words, points, colours):
        x, y = axes.transData.transform(point)
        up = 0
        while any(abs(y + up - b) < 15 and -8 * len(word) < x - a < 8 * n for a, b, n in taken):
            up += 5
        taken.append((x, y + up, len(word)))
        offset = (6, 4 + up * 72 / canvas.DPI)
        axes.annotate(word, point, offset, textcoords="offset points", color=colour)
    return figure


Arrow = Tensor | tuple[Tensor, Tensor]


def plane(arrows: dict[str, Arrow]) -> dict[str, np.ndarray]:
    """Tails and heads in the plane that the first two arrows span, by name: 2 2.

    Lengths and angles of arrows in that plane are kept; 2-D arrows stay as they are.
    """
    pairs = {
        name: arrow if isinstance(arrow, tuple) else (torch.zeros_like(arrow), arrow)
        for name, arrow in arrows.items()
    }
    flat = {
        name: torch.stack([end.detach().double().flatten() for end in pair])
        for name, pair in pairs.items()
    }
    first, second = list(flat.values())[:2]
    if first.shape[1] == 2:
        return {name: ends.numpy() for name, ends in flat.items()}
    along = first[1] - first[0]
    along = along / along.norm()
    across = second[1] - second[0]
    across = across - (across @ along) * along
    basis = torch.stack([along, across / across.norm()])
    return {name: (ends @ basis.T).numpy() for name, ends in flat.items()}


@canvas.with_style
def vectors(
    arrows: dict[str, Arrow], x_label: str = "", y_label: str = "", height: int = 320
) -> Figure:
    """Arrows by name, drawn true to length and angle: the three vectors of guidance.

    arrows: a vector from the origin, or (tail, head); tensors of any shape. The plane is the one
    that the first two span.
    """
    figure, (axes,) = canvas.panels(1, height)
    ends = plane(arrows)
    for index, (name, (tail, head)) in enumerate(ends.items()):
        colour = COLOURS[index % 7]
        how = {"arrowstyle": "-|>", "color": colour, "lw": 2.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", head, tail, arrowprops=how)
        axes.annotate(name, head, (6, 0), textcoords="offset points", color=colour, va="center")
    every = np.concatenate(list(ends.values()))
    axes.scatter(*every.T, s=0)
    axes.margins(0.25)
    axes.set_aspect("equal", adjustable="datalim")
    axes.axhline(0, color=PALE, zorder=0)
    axes.axvline(0, color=PALE, zorder=0)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    return figure
