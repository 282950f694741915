"""Figures made of pictures: rows, tables, latents, attention over a picture, a slider.

A picture is a PIL image or a tensor in [-1, 1]. The tensor is 3 h w or 1 3 h w, or h w if the
picture is grey.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from einops import rearrange
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minisd.files.pictures import to_pil
from minisd.teaching.picture_grid import paste_grid
from minisd.teaching.plot import canvas

NEAREST = Image.Resampling.NEAREST
AnyPicture = Tensor | Image.Image
# pixels: the space between pictures, the height of a line, the width of a letter
GAP, LINE, LETTER_WIDTH = 6, 17, 7.5
WIDEST = 160  # pixels. Wider pictures, such as those of Stable Diffusion, are shown smaller


def as_pil(picture: AnyPicture) -> Image.Image:
    """Convert a picture to a PIL image. The top of this file says what a picture may be."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if picture.ndim == 2:
        picture = picture.expand(3, *picture.shape)
    if picture.ndim == 3:
        picture = rearrange(picture, "c h w -> 1 c h w")
    if picture.ndim != 4 or picture.shape[:2] != (1, 3):
        raise ValueError(f"a picture must have the shape 3 h w, got {tuple(picture.shape)}.")
    return to_pil(picture.detach())[0]


def enlarge(picture: Image.Image, width: int) -> Image.Image:
    """Enlarge a picture by a whole number, at most to this width: each pixel becomes a square.

    So a figure shows exactly the numbers of the picture. A picture that is wider than `width` keeps
    its size. Only pictures that are also wider than WIDEST become smaller.
    """
    if picture.width > max(width, WIDEST):
        return picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.BOX
        )
    times = max(1, width // picture.width)
    return picture.resize((picture.width * times, picture.height * times), NEAREST)


def same_size(pictures: Sequence[Image.Image], width: int) -> int:
    """The largest width up to this one that enlarges the largest picture by a whole number.

    Then a latent is not larger than the picture next to it.
    """
    largest = max(picture.width for picture in pictures)
    return width - width % largest if largest <= width else width


def split_evenly(count: int, most: int) -> int:
    """The length of each row, if `count` pictures stand in as few rows of at most `most` as can be.

    >>> split_evenly(8, 7)
    4
    """
    return math.ceil(count / math.ceil(count / most))


def place_picture(figure: Figure, picture: Image.Image, left: int, top: int) -> None:
    """Put a picture on a figure in its own size.

    left, top: the place of the picture's upper left corner, in pixels from the left and the top
    """
    width, height = figure.get_size_inches() * canvas.DPI
    corner = left / width, 1 - (top + picture.height) / height
    axes = figure.add_axes((*corner, picture.width / width, picture.height / height))
    axes.imshow(np.asarray(picture), interpolation="none", aspect="auto")
    axes.set_axis_off()


def write_words(figure: Figure, words: str, x: float, y: float, ha="center", va="bottom") -> None:
    """Write words on a figure.

    x, y: the place, in pixels from the left and from the top of the figure
    ha, va: the alignment of the words at this place, as in matplotlib
    """
    width, height = figure.get_size_inches() * canvas.DPI
    figure.text(x / width, 1 - y / height, words, ha=ha, va=va)


@canvas.with_style
def pictures(
    images: Tensor | Sequence[AnyPicture],
    titles: Sequence[str] = (),
    columns: int | None = None,
    size: int | None = None,
) -> Figure:
    """Pictures in rows, each below its title.

    images: b 3 h w, or a list of pictures
    titles: one title for each picture. If this is empty, there are no titles
    columns: the number of pictures in a row. None: as many as fit
    size: the largest width of one picture in pixels. None: the width that fits, at most 160. Small
        pictures are enlarged by a whole number. The mini's pictures are never made smaller

    Raises ValueError if the columns do not fit.
    """
    shown = [as_pil(image) for image in images]
    if titles and len(titles) != len(shown):
        raise ValueError(f"{len(shown)} pictures need {len(shown)} titles, got {len(titles)}.")
    size = same_size(shown, size or min(WIDEST, canvas.WIDTH // (columns or len(shown)) - GAP))
    shown = [enlarge(image, size) for image in shown]
    widest = max(image.width for image in shown)
    most = max(1, canvas.WIDTH // (widest + GAP))
    columns = columns or split_evenly(len(shown), most)
    if columns > most:
        raise ValueError(f"{most} pictures of {widest} pixels fit in a row, got {columns} columns.")
    head = LINE * max((title.count("\n") + 1 for title in titles), default=0)
    sheet, places = paste_grid(shown, columns, GAP, above=head)
    figure = canvas.blank_figure(sheet.height, sheet.width)
    margin = GAP // 2
    place_picture(figure, sheet, margin, 0)
    for title, (left, top) in zip(titles, places, strict=bool(titles)):  # titles may be empty
        write_words(figure, title, margin + left + widest / 2, top - 1)
    return figure


@canvas.with_style
def table(rows: dict[str, Tensor | Sequence[AnyPicture]], columns: Sequence[str] = ()) -> Figure:
    """Pictures in a table. The names of the rows are at the left, those of the columns at the top.

    If not all columns fit side by side, the rest of them stands below.

    rows: name of a row -> its pictures
    columns: the name of each column. If this is empty, the columns have no names
    """
    shown = {name: [as_pil(image) for image in images] for name, images in rows.items()}
    count = max(map(len, shown.values()))
    lines = [line for name in rows for line in name.split("\n")]
    longest = max(len(line) + 0.4 * sum(map(str.isupper, line)) for line in lines)
    margin = int(longest * LETTER_WIDTH) + 2 * GAP
    every = [image for row in shown.values() for image in row]
    size = same_size(every, min(128, (canvas.WIDTH - margin) // count - GAP))
    shown = {name: [enlarge(image, size) for image in row] for name, row in shown.items()}
    wide = max(image.width for row in shown.values() for image in row) + GAP
    tall = max(image.height for row in shown.values() for image in row) + GAP
    across = split_evenly(count, max(1, (canvas.WIDTH - margin) // wide))
    head = LINE * max((title.count("\n") + 1 for title in columns), default=0)
    block = head + tall * len(shown)
    figure = canvas.blank_figure(block * math.ceil(count / across), margin + wide * across)
    for first in range(0, count, across):
        top = block * first // across
        for c, title in enumerate(columns[first : first + across]):
            write_words(figure, title, margin + c * wide + (wide - GAP) / 2, top + head - 1)
        for name, row in shown.items():
            write_words(figure, name, margin - GAP, top + head + tall / 2, "right", "center")
            if part := row[first : first + across]:
                place_picture(figure, paste_grid(part, gap=GAP)[0], margin, top + head)
            top += tall
    return figure


@canvas.with_style
def channels(
    latent: Tensor, titles: Sequence[str] = (), picture: AnyPicture | None = None, label: str = ""
) -> Figure:
    """Every channel of a latent as a picture: blue is negative, red is positive, white is zero.

    latent: c h w or 1 c h w
    titles: the titles of the channels. If this is empty: channel 0, channel 1, …
    picture: a picture to show before the channels, for comparison. None: no picture
    label: the label of the colour scale. All channels have the same scale
    """
    latent = latent.detach().float().squeeze(0).cpu()
    peak = latent.abs().max().item() or 1.0
    colours = matplotlib.colormaps["RdBu_r"](latent.numpy() / (2 * peak) + 0.5)[..., :3]
    maps = [Image.fromarray((255 * each).round().astype(np.uint8)) for each in colours]
    names = list(titles) or [f"channel {c}" for c in range(len(maps))]
    shown = maps if picture is None else [as_pil(picture), *maps]
    figure = pictures(shown, names if picture is None else ["picture", *names])
    return with_scale(figure, "RdBu_r", -peak, peak, label)


def with_scale(figure: Figure, cmap: str, low: float, high: float, label: str) -> Figure:
    """Add a colour scale below a figure, with ticks at both ends and in the middle.

    cmap: the name of matplotlib's colour map
    low, high: the numbers at the ends of the scale
    """
    below = 46
    width, height = figure.get_size_inches() * canvas.DPI
    taller = height + below
    for axes in figure.axes:
        x, y, w, h = axes.get_position().bounds
        axes.set_position((x, (y * height + below) / taller, w, h * height / taller))
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((x, (y * height + below) / taller))
    figure.set_size_inches(width / canvas.DPI, taller / canvas.DPI)
    bar = figure.add_axes((0.3, 30 / taller, 0.4, 10 / taller))
    shades = ScalarMappable(Normalize(low, high), cmap)
    figure.colorbar(shades, cax=bar, orientation="horizontal", ticks=[low, (low + high) / 2, high])
    bar.set_xticklabels([f"{value:.2g}" for value in (low, (low + high) / 2, high)])
    if label:
        write_words(figure, label, 0.3 * width - GAP, taller - 35, ha="right", va="center")
    return figure


def overlay(picture: AnyPicture, weights: Tensor, peak: float | None = None) -> Image.Image:
    """Colour a picture by an attention map: from dark blue (no attention) to yellow (the most).

    weights: h w, the attention map, 0 or more. Its resolution may differ from the picture's
    peak: the weight that is shown as yellow. None: the largest weight of the map
    """
    grey = as_pil(picture).convert("L")
    share = (weights.detach().float().cpu() / (peak or weights.max())).clamp(0, 1)
    share = Image.fromarray(share.numpy()).resize(grey.size, NEAREST)
    colours = matplotlib.colormaps["viridis"](np.asarray(share))[..., :3]
    light = np.asarray(grey, dtype=np.float64)[..., None] / 255
    return Image.fromarray((255 * colours * (0.5 + 0.5 * light)).round().astype(np.uint8))


def attention(
    picture: AnyPicture,
    maps: Tensor | Sequence[Tensor],
    words: Sequence[str],
    columns: int | None = None,
    together: bool = False,
) -> Figure:
    """The picture, and a copy of it for each word, coloured by the word's attention map.

    maps: one attention map for each word, h w: the attention that each place pays to the word
    words: the words, as titles
    columns: the number of pictures in a row. None: as many as there are, at most 5
    together: True: all maps have the same scale, so a word with little attention is dark. False:
        each map has its own scale
    """
    peak = max(each.max().item() for each in maps) if together else None
    overlays = [overlay(picture, each, peak) for each in maps]
    shown = [as_pil(picture), *overlays]
    return pictures(shown, ["picture", *words], columns or min(len(words) + 1, 5))


def stack_figures(figures: Sequence[Figure]) -> Figure:
    """Join several figures into one figure, one below the other."""
    shots = [canvas.as_image(figure) for figure in figures]
    sheet, _ = paste_grid(shots, columns=1)
    figure = canvas.blank_figure(sheet.height, sheet.width)
    place_picture(figure, sheet, 0, 0)
    return figure


def slider(
    draw: Callable[[object], Figure],
    label: str,
    values: Sequence,
    alt: str,
    shown: Sequence | None = None,
) -> None:
    """Show a figure with a slider for one setting. If there are no widgets, show a few figures.

    draw: a function that returns the figure for a value of the setting
    label: the name of the setting
    values: all values that the slider offers
    alt: a sentence that describes the figures, for readers who cannot see them
    shown: the values to show if there are no widgets. None: the first, the middle and the last one
    """
    values = list(values)
    if widgets := canvas.find_widgets():
        return show_slider(draw, label, values, alt, widgets)
    few = shown or list(dict.fromkeys([values[0], values[len(values) // 2], values[-1]]))
    canvas.show(stack_figures([draw(value) for value in few]), alt)


def show_slider(
    draw: Callable[[object], Figure], label: str, values: list, alt: str, ipywidgets: Any
) -> None:
    """Show the slider below the cell, and below it the figure for the chosen value."""
    drawn: dict = {}
    choice = ipywidgets.SelectionSlider(options=values, description=label, continuous_update=False)
    screen = ipywidgets.HTML()

    def refresh(change: dict | None = None) -> None:
        value = choice.value
        if value not in drawn:
            with torch.no_grad():
                drawn[value] = canvas.Shown(canvas.png(draw(value)), alt).as_html()
        screen.value = drawn[value]

    choice.observe(refresh, names="value")
    refresh()
    canvas.display(ipywidgets.VBox([choice, screen]))
