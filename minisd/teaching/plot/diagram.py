"""Diagrams of boxes and arrows, for example a map of the course, or a network with its shapes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
            steep = abs(start.y - end.y) > abs(start.x - end.x) / 2
            ha, va, right = ("left", "center", 6) if steep else ("center", "bottom", 0)
            up = 0 if steep else 2 + abs(start.y - end.y) / 20
            axes.text(middle[0] + right, middle[1] - up, words[0], ha=ha, va=va)
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
    """A diagram of the U-Net in the shape of a U: modules, the shapes of their outputs, all skips.

    values: a trace of at least one run
    prefix: the beginning of these names. Give "" if the network was traced alone
    """
    nodes, arrows = unet_boxes(network, values, prefix)
    figure = boxes(nodes, arrows, round(nodes["mid"].y) + 30)
    with_input_names(figure.axes[0], nodes)
    return figure


def unet_boxes(
    network: UNet, values: dict[str, list], prefix: str
) -> tuple[dict[str, Box], list[tuple[str, str] | tuple[str, str, str]]]:
    """The boxes of the U-Net's diagram, and the arrows between them. See unet()."""
    last, left, right, row = len(network.down) - 1, 152, canvas.WIDTH - 152, 124

    def one(name: str, x: float, y: float, colour: int) -> Box:
        words = f"{name.rsplit('.', 1)[-1]}\n{shape_words(values[f'{prefix}{name}'])}"
        return Box(x, y, words, colour, 160, 38)

    nodes = {"in": one("conv_in", left, 23, 6), "out": one("conv_out", right, 23, 6)}
    arrows: list[tuple[str, str] | tuple[str, str, str]] = []
    above = "in", "out"  # what stands above a level: on the way down, on the way up
    for level in range(last + 1):
        y, down, up = 86 + row * level, f"down.{level}", f"up.{last - level}"
        for name, x, colour in ((down, left, 0), (up, right, 1)):
            part: Any = network.get_submodule(name)
            kinds = "(ResBlock, attention)" if len(part.attn) else "ResBlock"
            shape = shape_words(last_output(values, f"{prefix}{name}"))
            nodes[name] = Box(x, y, f"{name}: {len(part.res)} x\n{kinds}\n{shape}", colour, 160, 58)
        arrows += [(above[0], down), (up, above[1]), (above[0], up, "1 skip")]
        blocks = network.config.res_blocks
        arrows += [(down, up, f"{blocks} skip" + "s" * (blocks > 1))]
        if level < last:
            above = f"{down}.downsample", f"up.{last - level - 1}.upsample"
            nodes[above[0]] = one(above[0], left, y + row / 2, 0)
            nodes[above[1]] = one(above[1], right, y + row / 2, 1)
            arrows += [(down, above[0]), (above[1], up)]
    shape = shape_words(values[f"{prefix}mid"])
    words = f"mid: ResBlock, attention, ResBlock\n{shape}"
    nodes["mid"] = Box(canvas.WIDTH / 2, 86 + row * last + 68, words, 2, 270)
    return nodes, [*arrows, (f"down.{last}", "mid"), ("mid", "up.0")]


@canvas.with_style
def with_input_names(axes: Axes, nodes: dict[str, Box]) -> None:
    """Write x, t and context next to the boxes that read them, with an arrow into the box."""
    for key, box in nodes.items():
        side = 1 if box.x > canvas.WIDTH / 2 else -1
        read = {"in": ["x"], "out": ["output"]}.get(key, [])
        read += ["t"] * ("ResBlock" in box.words) + ["context"] * ("attention" in box.words)
        style = "<|-" if key == "out" else "-|>"
        look: dict[str, Any] = {"ha": "left" if side > 0 else "right", "va": "center"}
        look["arrowprops"] = {"arrowstyle": style, "color": INK, "lw": 1.5}
        for i, name in enumerate(read):
            y, edge = box.y + 20 * i - 10 * (len(read) - 1), box.x + side * box.width / 2
            axes.annotate(name, (edge, y), (edge + 18 * side, y), **look)
