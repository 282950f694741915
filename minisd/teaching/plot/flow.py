"""Figures of the diffusion of points: densities, paths, clouds of points, arrows.

flow(states, ts)          1-D: where all points are at every t, and the paths of some points
peaks(places, panels)     1-D: the density of each group at a few t
groups(panels, names)     2-D: clouds of points, coloured by group
field(panels)             2-D: the direction at each place, as an arrow

Points are tensors b 1 1 1 (1-D) or b 2 1 1 (2-D), like those of minisd.teaching.toy. Tensors of
another shape, such as b 2, can be used if their numbers are in the same order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minisd.teaching.plot import canvas
from minisd.teaching.plot.canvas import COLOURS, INK, PALE

BINS = 90  # number of places along x at which a density is estimated
PATHS = 14  # number of paths that are drawn
GREY = "#999999"


def as_rows(points: Tensor, d: int) -> np.ndarray:
    """Points as an array with one row for each point. returns: b d"""
    return rearrange(points.detach().cpu().numpy().ravel(), "(b d) -> b d", d=d)


@canvas.with_style
def flow(
    states: Tensor | dict[str, Tensor],
    ts: Sequence[float],
    groups: Tensor | None = None,
    density: Tensor | None = None,
    span: tuple[float, float] = (-2.6, 2.6),
    labels: tuple[str, str] = ("t", "x"),
    height: int = 280,
) -> Figure:
    """Where points on a line are at every t, and the paths of a few points.

    A darker grey means more points.

    states: s b, the places of b points at s times. Or a dictionary: title -> places, for several
        panels side by side
    ts: the s times, from left to right in the figure
    groups: b, the group of each point, for the colours of the paths. None: one colour
    density: s places, the exact density at evenly spaced places of the span. None: the density is
        estimated from the points
    span: the lowest and the highest place that the figure shows
    labels: the labels of the two axes
    """
    panels = states if isinstance(states, dict) else {"": states}
    figure, axes = canvas.panels(len(panels), height, sharey=True)
    moments = np.arange(len(ts))
    first, last = ts[0], ts[-1]
    inner = (250, 500, 750) if len(panels) == 1 else (500,)
    shown = [first, *(t for t in inner if min(first, last) + 99 < t < max(first, last) - 99), last]
    way = 1 if last > first else -1
    marks = np.interp(np.multiply(way, shown), np.multiply(way, ts), moments)
    names = ["clean" if t < 0 else f"{t:.0f}" for t in shown]
    for plane, (title, points) in zip(axes, panels.items(), strict=True):
        paths = rearrange(points.detach().cpu().numpy(), "s b ... -> s (b ...)")
        draw_density(plane, count_points(paths, span) if density is None else density.numpy(), span)
        kinds = torch.zeros(paths.shape[1]) if groups is None else groups
        for path, kind in zip(paths.T[:PATHS], kinds[:PATHS], strict=True):
            plane.plot(moments, path, color=COLOURS[int(kind)], linewidth=1.2)
        plane.set_xticks(marks, names)
        plane.set(xlabel=labels[0], ylim=span, title=title)
    axes[0].set_ylabel(labels[1])
    return figure


def draw_density(plane: Axes, density: np.ndarray, span: tuple[float, float]) -> None:
    """Draw the densities at s times in grey. At each time, the largest density is the darkest grey.

    density: s places
    """
    shades = density / density.max(axis=1, keepdims=True)
    extent = (0, len(density) - 1, *span)
    look = {"cmap": "Greys", "vmin": 0, "vmax": 1.6, "aspect": "auto", "origin": "lower"}
    plane.imshow(shades.T, extent=extent, interpolation="bilinear", **look)


def count_points(states: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Count the points near each place, and smooth the counts slightly.

    states: s b    returns: s places
    """
    edges = np.linspace(*span, BINS + 1)
    rows = [np.histogram(row, edges)[0] for row in states]
    soft = np.array([1, 4, 6, 4, 1]) / 16
    return np.stack([np.convolve(row, soft, "same") for row in rows]) + 1e-9


@canvas.with_style
def peaks(
    places: Tensor,
    panels: dict[str, Tensor],
    names: Sequence[str],
    samples: dict[str, Tensor] | None = None,
    x_label: str = "x",
    height: int = 230,
) -> Figure:
    """The density of each group along a line, and the sum of these densities, in several panels.

    places: p, the places on the line
    panels: title of a panel -> the densities of the groups at these places, groups p
    names: the names of the groups
    samples: title of a panel -> points, whose histogram is drawn behind the densities. None: there
        are no histograms
    """
    figure, axes = canvas.panels(len(panels), height, sharex=True, sharey=True)
    x = places.detach().cpu().numpy().ravel()
    for plane, (title, rows) in zip(axes, panels.items(), strict=True):
        values = rows.detach().cpu().numpy()
        if samples is not None:
            found = samples[title].detach().cpu().numpy().ravel()
            plane.hist(found, bins=50, range=(x[0], x[-1]), density=True, color=GREY)
        for index, row in enumerate(values):
            if samples is None:
                plane.fill_between(x, row, color=COLOURS[index], alpha=0.55, linewidth=0)
            else:
                plane.plot(x, row, color=COLOURS[index], linewidth=1.5)
        plane.plot(x, values.sum(axis=0), color=INK, linewidth=1.5)
        plane.set_title(title)
        plane.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        plane.set_yticks([])
        plane.spines["left"].set_visible(False)
        plane.set_xlabel(x_label)
    name_groups(figure, names)
    return figure


Cloud = tuple[Tensor, Tensor | None]  # points, b 2 1 1, and their groups, b, or None


@canvas.with_style
def groups(
    panels: dict[str, Cloud],
    names: Sequence[str] = (),
    unsure: dict[str, Tensor] | None = None,
    ways: dict[str, Tensor] | None = None,
    reach: float | tuple[float, float] = 2.4,
    ring: float | None = None,
    columns: int | None = None,
) -> Figure:
    """Clouds of points in the plane, coloured by group, in several panels.

    panels: title of a panel -> its points, and the group of each point
    names: the names of the groups
    unsure: title of a panel -> b, true for the points that fit no group. They get a black ring
    ways: title of a panel -> the paths of b points, s b 2. They are drawn behind the points
    reach: how far the axes go: from -reach to reach. Or a pair: how far right, and how far up
    ring: the radius of a circle to draw. None: no circle
    columns: the number of panels in a row. None: all panels are in one row
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    right, up = reach if isinstance(reach, tuple) else (reach, reach)
    side = (canvas.WIDTH - 16) // (columns if up < right else max(2, columns))
    figure = canvas.blank_figure(rows * (int(side * up / right) + 24) + 34 * bool(names))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    planes = figure.subplots(rows, columns, squeeze=False).ravel()
    most = max(len(points) for points, _ in panels.values())
    size = 2 if most > 2000 else 4 if most > 250 else 14
    for plane, (title, (points, kinds)) in zip(planes[: len(panels)], panels.items(), strict=True):
        for path in rearrange((ways or {}).get(title, torch.zeros(0, 0, 2)), "s b d -> b d s"):
            plane.plot(*path.numpy(), color=GREY, linewidth=0.8, zorder=0)
        colours = GREY if kinds is None else [COLOURS[int(kind)] for kind in kinds]
        plane.scatter(*as_rows(points, 2).T, s=size, c=colours, linewidths=0)
        if unsure and title in unsure:
            doubtful = as_rows(points[unsure[title]], 2)
            plane.scatter(*doubtful.T, s=14, facecolors="none", edgecolors=INK, linewidths=0.8)
        frame_panel(plane, title, reach, ring)
    for plane in planes[len(panels) :]:
        plane.set_axis_off()
    name_groups(figure, names)
    return figure


@canvas.with_style
def field(
    panels: dict[str, tuple[Tensor, Tensor]],
    points: Tensor | dict[str, Tensor] | None = None,
    marks: tuple[Sequence[str], Tensor] | None = None,
    reach: float = 2.4,
    longest: float = 0.4,
) -> Figure:
    """Arrows in the plane, in several panels. Each arrow shows the direction at its place.

    panels: title of a panel -> the places where the arrows begin, and the directions, both p 2 1 1
    points: b 2 1 1, points to draw in a pale colour behind the arrows of all panels. Or a
        dictionary: title of a panel -> its points. None: no points
    marks: names, and the places where they are written, n 2 1 1. None: no names
    reach: how far the axes go: from -reach to reach
    longest: the length of the longest arrow in each panel. Short arrows are drawn a little longer
        than they should be, so that readers can see their directions
    """
    side = (canvas.WIDTH - 16) // max(2, len(panels))
    figure, planes = canvas.panels(len(panels), side + 24)
    names, centres = marks or ((), ())
    bold: dict[str, Any] = {"weight": "bold", "ha": "center", "va": "center"}
    for plane, (title, (places, arrows)) in zip(planes, panels.items(), strict=True):
        below = points.get(title) if isinstance(points, dict) else points
        if below is not None:
            plane.scatter(*as_rows(below, 2).T, s=4, color=COLOURS[5], linewidths=0)
        way = as_rows(arrows, 2)
        length = np.linalg.norm(way, axis=1, keepdims=True)
        way = longest * way / np.maximum(length, 1e-9) * (length / length.max()) ** 0.4
        x, y = as_rows(places, 2).T
        look = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.008, "color": INK}
        plane.quiver(x, y, *way.T, **look)
        for index, (name, centre) in enumerate(zip(names, centres, strict=True)):
            right, up = centre.flatten().tolist()
            plane.text(right, up, name, color=COLOURS[index], backgroundcolor="#FFFFFFCC", **bold)
        frame_panel(plane, title, reach)
    return figure


def frame_panel(
    plane: Axes, title: str, reach: float | tuple[float, float], ring: float | None = None
) -> None:
    """Remove the panel's ticks, give both axes the same scale, and write its title.

    reach: how far the axes go: from -reach to reach. Or a pair: how far right, and how far up
    ring: the radius of a circle to draw. None: no circle
    """
    if ring is not None:
        turn = np.linspace(0, 2 * np.pi, 100)
        plane.plot(ring * np.cos(turn), ring * np.sin(turn), color=GREY, linewidth=1)
    right, up = reach if isinstance(reach, tuple) else (reach, reach)
    plane.set(xlim=(-right, right), ylim=(-up, up), xticks=[], yticks=[], title=title)
    plane.set_aspect("equal")
    for side in plane.spines.values():
        side.set(visible=True, color=PALE)


def name_groups(figure: Figure, names: Sequence[str]) -> None:
    """Write the names of the groups above the panels, each next to a dot in the group's colour."""
    if names:
        dots = [figure.axes[0].scatter([], [], color=COLOURS[i], s=60) for i in range(len(names))]
        figure.legend(dots, names, loc="outside upper center", ncols=len(names), frameon=False)
