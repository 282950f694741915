"""Figures that show numbers: curves, bars, heat maps, words in a plane, arrows."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
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
    """Curves, each with its name at its right end. For example: a loss, the noise levels, errors.

    curves: name of a curve -> the y of its points, or a pair: the x and the y of its points
    log: the axes that are logarithmic: "", "x", "y" or "xy"
    marks: whether every point gets a dot and a tick. Use this for curves with few points
    """
    figure, (axes,) = canvas.panels(1, height)
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    ends, places = [], []
    for index, (name, curve) in enumerate(curves.items()):
        x, y = curve if isinstance(curve, tuple) else (range(len(curve)), curve)
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        colour, dash = COLOURS[index % 7], DASHES[index // 7 if marks else index % 4]
        axes.plot(x, y, dash, color=colour, marker="o" if marks else None, markersize=5)
        ends.append((name, y[np.isfinite(y)][-1], colour))
        places.append(x)
    if marks:
        axes.set_xticks(np.unique(np.concatenate(places)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    elif "x" not in log and all((x % 1 == 0).all() for x in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=PALE, linewidth=0.8)
    if len(ends) > 1:
        figure.draw_without_rendering()  # matplotlib now knows where the curves end
        name_ends(axes, ends)
    return figure


def name_ends(axes: Axes, ends: list[tuple[str, float, str]]) -> None:
    """Write the name of each curve next to its right end. Names that would overlap are moved apart.

    ends: for each curve: its name, the y of its end, and its colour
    """
    tall, left = axes.bbox.height, axes.get_xlim()[0]
    pixels = [axes.transData.transform((left, value))[1] for _, value, _ in ends]
    heights = [axes.transAxes.inverted().transform((0, y))[1] for y in pixels]
    apart = 16 / tall
    order = sorted(range(len(ends)), key=heights.__getitem__)
    for below, above in pairwise(order):
        heights[above] = max(heights[above], heights[below] + apart)
    overshoot = max(0.0, max(heights) - 1)
    for (name, _, colour), y in zip(ends, heights, strict=True):
        axes.text(1.02, y - overshoot, name, color=colour, transform=axes.transAxes, va="center")


@canvas.with_style
def bars(
    values: dict[str, float | Sequence[float]],
    label: str = "",
    parts: Sequence[str] = (),
    form: str = "{:.2f}",
) -> Figure:
    """Horizontal bars with their names. A bar shows one number, or is divided into parts.

    values: name of a bar -> its number, or one number for each part
    label: the label of the number axis
    parts: the names of the parts. If this is empty, the bars have no parts
    form: the format of the number next to a bar
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
def scatter(
    groups: dict[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str = "",
    y_label: str = "",
    height: int = 340,
) -> Figure:
    """Points with two measured numbers each, coloured by group. Both axes have one scale, from 0.

    A grey line shows where both numbers are equal.

    groups: name of a group -> the x and the y of its points
    """
    figure, (axes,) = canvas.panels(1, height)
    for index, (name, (x, y)) in enumerate(groups.items()):
        axes.scatter(x, y, s=22, color=COLOURS[index % 7], marker="os^D"[index % 4], label=name)
    most = 1.08 * max(float(max(one)) for pair in groups.values() for one in pair)
    axes.plot([0, most], [0, most], color=PALE, zorder=0)
    axes.set(xlim=(0, most), ylim=(0, most), xlabel=x_label, ylabel=y_label, aspect="equal")
    figure.legend(loc="outside right upper", frameon=False)
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
    """A matrix as a grid of coloured squares, one for each number.

    For example: the similarity of words, attention weights, the difference of two tensors.

    rows, columns: the names of the rows and columns
    label: the label of the colour scale
    signed: True: negative numbers are blue, 0 is white, and positive numbers are red. False: the
        smallest number is dark, and the largest number is yellow
    numbers: whether to write the numbers into the squares. None: only if there is room
    form: the format of these numbers
    """
    values = matrix.detach().float().cpu().numpy()
    n, m = values.shape
    figure, (axes,) = canvas.panels(1, int(min(480, 120 + max(26, 200 // n) * n)))
    peak = abs(values).max() or 1.0
    cmap, low, high = ("RdBu_r", -peak, peak) if signed else ("viridis", None, None)
    image = axes.imshow(values, aspect="auto", cmap=cmap, vmin=low, vmax=high)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    if max(map(len, columns), default=0) * 7.5 > 330 / m:
        axes.tick_params(axis="x", rotation=60)
    if numbers if numbers is not None else m <= 8 and n <= 14:
        write_numbers(axes, values, image, form)
    figure.colorbar(image, label=label)
    return figure


def write_numbers(axes: Axes, values: np.ndarray, image: AxesImage, form: str) -> None:
    """Write each number into its square: white on a dark square, black on a light square."""
    for (row, column), value in np.ndenumerate(values):
        light = np.dot(image.to_rgba(value)[:3], (0.3, 0.6, 0.1)) > 0.5
        colour = "black" if light else "white"
        axes.text(column, row, form.format(value), ha="center", va="center", color=colour)


def principal_components(vectors: Tensor, dimensions: int = 2) -> Tensor:
    """The coordinates of vectors along their principal axes: the directions of largest variance.

    An axis could also point the opposite way. So its largest component is always made positive.

    dimensions: the number of axes
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
    """Words as points in a plane. The points of similar words are close, as far as possible.

    vectors: n d, the vectors of the words
    groups: a number for each word. Words with the same number have the same colour
    """
    figure, (axes,) = canvas.panels(1, height)
    points = principal_components(vectors).numpy()
    colours = [COLOURS[group % 7] for group in groups or [0] * len(words)]
    axes.scatter(*points.T, c=colours, s=36)
    axes.margins(0.15)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.draw_without_rendering()  # matplotlib now knows where the points are
    taken: list[tuple[float, float, int]] = []
    for word, point, colour in zip(words, points, colours, strict=True):
        x, y = axes.transData.transform(point)
        up = 0
        while any(abs(y + up - b) < 15 and -8 * len(word) < x - a < 8 * n for a, b, n in taken):
            up += 5
        taken.append((x, y + up, len(word)))
        offset = (6, 4 + up * 72 / canvas.DPI)
        axes.annotate(word, point, offset, textcoords="offset points", color=colour)
    return figure


Arrow = Tensor | tuple[Tensor, Tensor]


def project_arrows(arrows: dict[str, Arrow]) -> dict[str, np.ndarray]:
    """Project arrows onto the plane that the first two arrows span.

    Arrows in this plane keep their lengths and angles. 2-D arrows stay as they are.

    arrows: name -> a vector from the origin, or a pair (tail, head)
    returns: a dictionary: name -> 2 2, the tail and the head in the plane
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
    """Arrows with their names, for example the three vectors of guidance.

    The figure shows the plane that the first two arrows span. Arrows in this plane have their true
    lengths and angles. The name of a pair stands at the middle of its arrow.

    arrows: name -> a vector from the origin, or a pair (tail, head). The tensors may have any shape
    """
    figure, (axes,) = canvas.panels(1, height)
    ends = project_arrows(arrows)
    for index, (name, (tail, head)) in enumerate(ends.items()):
        colour = COLOURS[index % 7]
        how = {"arrowstyle": "-|>", "color": colour, "lw": 2.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", head, tail, arrowprops=how)
        place = (tail + head) / 2 if isinstance(arrows[name], tuple) else head
        axes.annotate(name, place, (8, 0), textcoords="offset points", color=colour, va="center")
    every = np.concatenate(list(ends.values()))
    axes.scatter(*every.T, s=0)
    axes.margins(0.08)
    axes.set_aspect("equal", adjustable="box")
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    return figure
