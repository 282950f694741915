"""Diagrams of boxes and arrows, for example a map of the course, or a network with its shapes."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from minisd.teaching.plot import canvas
from minisd.teaching.plot.canvas import COLOURS, INK
from minisd.unet import UNet


class Box(NamedTuple):
    """A box of a diagram, with words in it.

    x, y: the centre of the box, in pixels from the left and from the top of the figure
    """

    x: float
    y: float
    words: str
    colour: int = 0  # an index of canvas.COLOURS
    width: float = 140
    height: float = 44


@canvas.with_style
def boxes(
    nodes: dict[str, Box], arrows: list[tuple[str, str] | tuple[str, str, str]], height: int
) -> Figure:
    """A figure of boxes, with arrows between the boxes.

    nodes: key of a box -> the box
    arrows: for each arrow: the keys of two boxes (from, to), or (from, to, words for the arrow)
    height: the figure's height in pixels
    """
    figure = canvas.blank_figure(height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, canvas.WIDTH)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    patches = {key: draw_box(axes, box) for key, box in nodes.items()}
    for tail, head, *words in arrows:
        start, end = nodes[tail], nodes[head]
        axes.add_patch(
            FancyArrowPatch(
                (start.x, start.y),
                (end.x, end.y),
                arrowstyle="-|>",
                mutation_scale=14,
                color=INK,
                patchA=patches[tail],
                patchB=patches[head],
                shrinkA=2,
                shrinkB=2,
                lw=1.5,
            )
        )
        if words:
            middle = (start.x + end.x) / 2, (start.y + end.y) / 2
            flat = abs(start.y - end.y) < 1
            ha, va, right = ("center", "bottom", 0) if flat else ("left", "center", 6)
            axes.text(middle[0] + right, middle[1] - 2 * flat, words[0], ha=ha, va=va)
    return figure


def draw_box(axes: Axes, box: Box) -> FancyBboxPatch:
    """Draw the box with its words. Returns the outline of the box, where arrows end."""
    corner = box.x - box.width / 2, box.y - box.height / 2
    colour = COLOURS[box.colour % len(COLOURS)]
    patch = FancyBboxPatch(
        corner,
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=6",
        facecolor=colour + "26",  # almost transparent, so that words are readable
        edgecolor=colour,
        lw=2,
    )
    axes.add_patch(patch)
    axes.text(box.x, box.y, box.words, ha="center", va="center", linespacing=1.25)
    return patch


@canvas.with_style
def bricks(
    rows: dict[str, Sequence[str]], marked: dict[str, Sequence[int]] | None = None
) -> Figure:
    """Texts cut into pieces: one row for each text, one box for each piece.

    All letters are equally wide. A box is as wide as the longest line of its piece.

    rows: name of a row -> its pieces
    marked: name of a row -> the indices of the pieces that get the second colour
    """
    marked, margin = marked or {}, 16 + 7.5 * max(map(len, rows))
    widths = [[max(map(len, piece.split("\n"))) for piece in pieces] for pieces in rows.values()]
    letter = min(40, (canvas.WIDTH - margin - 4) / max(map(sum, widths)))
    tall = 18 + 18 * (1 + max(piece.count("\n") for row in rows.values() for piece in row))
    nodes, names = {}, []
    for r, (name, pieces) in enumerate(rows.items()):
        x, y = margin, 4 + tall * (r + 0.5)
        names.append((margin - 8, y, name))
        for c, (piece, width) in enumerate(zip(pieces, widths[r], strict=True)):
            colour = int(c in marked.get(name, ()))
            room = letter * width
            nodes[f"{r} {c}"] = Box(x + room / 2, y, piece, colour, room - 4, tall - 8)
            x += room
    figure = boxes(nodes, [], 8 + tall * len(rows))
    for x, y, name in names:
        figure.axes[0].text(x, y, name, ha="right", va="center")
    return figure


def shape_words(calls: list[Tensor]) -> str:
    """The shape of what a module returned when it first ran, as text: "2 96 8 8"."""
    return " ".join(map(str, calls[0].shape))


def last_output(values: dict[str, list], level: str) -> list[Tensor]:
    """The outputs of a level's last block. The change of size after this block is left out.

    values: a trace
    level: the beginning of the names of the level's outputs, such as "unet.down.0"
    """
    inside = [name for name in values if name.startswith((f"{level}.res.", f"{level}.attn."))]
    direct = [name for name in inside if name.count(".") == level.count(".") + 2]
    last = max(int(name.rsplit(".", 1)[1]) for name in direct)
    return next(
        values[f"{level}.{kind}.{last}"]
        for kind in ("attn", "res")
        if f"{level}.{kind}.{last}" in values
    )


def unet(network: UNet, values: dict[str, list], prefix: str = "unet.") -> Figure:
    """A diagram of the U-Net in the shape of a U. It shows modules and the shapes of their outputs.

    values: a trace of at least one run
    prefix: the beginning of these names. Give "" if the network was traced alone
    """
    count, row = len(network.down), 74
    nodes, arrows = {}, []
    left, right = 128, canvas.WIDTH - 128
    nodes["in"] = Box(left, 30, "conv_in\n" + shape_words(values[f"{prefix}conv_in"]), 6, 190)
    nodes["out"] = Box(right, 30, "conv_out\n" + shape_words(values[f"{prefix}conv_out"]), 6, 190)
    for level in range(count):
        y = 30 + row * (level + 1)
        for side, x, index, colour in (
            ("down", left, level, 0),
            ("up", right, count - 1 - level, 1),
        ):
            part = getattr(network, side)[index]
            kinds = "(ResBlock, attention)" if len(part.attn) else "ResBlock"
            shape = shape_words(last_output(values, f"{prefix}{side}.{index}"))
            words = f"{side}.{index}: {len(part.res)} x\n{kinds}\n{shape}"
            nodes[f"{side}{level}"] = Box(x, y, words, colour, 190, 58)
        arrows += [("in" if level == 0 else f"down{level - 1}", f"down{level}")]
        arrows += [(f"up{level}", "out" if level == 0 else f"up{level - 1}")]
        arrows += [(f"down{level}", f"up{level}", "skips")]
    middle = "mid: ResBlock, attention, ResBlock\n" + shape_words(values[f"{prefix}mid"])
    bottom = 30 + row * (count + 1)
    nodes["mid"] = Box(canvas.WIDTH / 2, bottom, middle, 2, 270)
    arrows += [(f"down{count - 1}", "mid"), ("mid", f"up{count - 1}")]
    return boxes(nodes, arrows, bottom + 36)
