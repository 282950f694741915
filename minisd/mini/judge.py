"""The judge: a small classifier that says what a picture shows. Only the evaluation uses it.

The judge was trained on pictures composed of emoji, not on pictures that the mini draws (see
train_judge.py). The judge does not judge the background, because the background's colour can be
measured directly.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.checkpoints.cover import without_numbers
from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.load import fill_whole
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.write import write_tensors
from minisd.config import MINI, WEIGHTS
from minisd.files.json_files import check_value, parse_json
from minisd.files.whole_files import written_whole
from minisd.mini.captions import NAMED_COLOURS, Scene
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import SHIFT, SMALL_WIDTH, batch, middles

CROP_SIDE = 64  # px of a crop
# The side of the crop around a small thing, as a fraction of the picture's side. The crop is large
# enough for the whole thing.
WINDOW = SMALL_WIDTH + 2 * SHIFT
VOCABULARIES = ("things", "styles", "colours")
MOST_WORDS = 1000  # in each vocabulary


class Seen(NamedTuple):
    """The judge's answers about one crop. If the thing is not tinted, ignore the tint."""

    thing: str
    style: str
    tint: str


class Block(nn.Module):
    """Two convolutions with a shortcut around them. Height and width are halved.

    x: b c_in h w    returns: b c_out h/2 w/2
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(F.avg_pool2d(x, 2)) + h


class Judge(nn.Module):
    """A network that gives three answers about one crop: a thing, its style and its tint.

    Each pair of a thing and a style is one class of the classifier, because a style changes each
    thing differently. The probability of a thing is the sum over all styles. The probability of a
    style is the sum over all things.

    crop: b 3 64 64 in [-1, 1]
    returns: three tensors of logits: of the thing, of the style, and of the tint
    """

    def __init__(self, things: tuple[str, ...], styles: tuple[str, ...], colours: tuple[str, ...]):
        super().__init__()
        self.things, self.styles, self.colours = things, styles, colours
        widths = (32, 64, 64, 64)
        self.conv_in = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(c_in, c_out) for c_in, c_out in pairwise(widths))
        self.norm_out = nn.GroupNorm(8, widths[-1])
        # conv_out reads all 4 x 4 places. With an average over the places, the judge would not know
        # what is where, and the training would be far slower
        self.conv_out = nn.Conv2d(widths[-1], len(things) * len(styles) + len(colours), 4)

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        x = self.conv_in(crop)
        for block in self.blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        logits = rearrange(x, "b answers 1 1 -> b answers")
        drawing, tint = logits[:, : -len(self.colours)], logits[:, -len(self.colours) :]
        styles = len(self.styles)
        drawing = rearrange(drawing, "b (things styles) -> b things styles", styles=styles)
        return drawing.logsumexp(dim=2), drawing.logsumexp(dim=1), tint


def through_windows(images: Tensor, windows: Tensor) -> Tensor:
    """Cut one window out of each picture, and resize the window to 64 x 64 pixels.

    If a window reaches beyond the picture, the colours of the picture's border continue there.

    images: b 3 h w
    windows: b 2 3, for each picture an affine map from the window to the picture. In the
        coordinates of both, the sides are at -1 and 1
    returns: b 3 64 64
    """
    grid = F.affine_grid(windows, [len(images), 3, CROP_SIDE, CROP_SIDE], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def crops(images: Tensor, scenes: list[Scene]) -> Tensor:
    """Cut out one crop for each thing of each scene, in the order of the scenes.

    The middle of a crop is the place where the thing should be. If a picture should show only one
    large thing, the crop is the whole picture.

    images: b 3 h w
    scenes: b scenes, one for each picture
    returns: n 3 64 64
    """
    owners, windows = [], []
    for index, scene in enumerate(scenes):
        alone = len(scene.things) == 1 and scene.spot is None
        side = 1 if alone else WINDOW
        for right, down in middles(scene):
            owners.append(index)
            windows.append([[side, 0, 2 * right - 1], [0, side, 2 * down - 1]])  # in [-1, 1]
    return through_windows(images[owners], torch.tensor(windows))


@torch.no_grad()
def look(judge: Judge, images: Tensor, scenes: list[Scene]) -> list[list[Seen]]:
    """Ask the judge about each thing in each picture.

    images: b 3 h w
    returns: for each scene, a list of the judge's answers, one for each thing
    """
    answers = [logits.argmax(dim=1).tolist() for logits in judge(crops(images, scenes))]
    rows = zip(*answers, strict=True)
    seen = (
        Seen(judge.things[thing], judge.styles[style], judge.colours[tint])
        for thing, style, tint in rows
    )
    return [[next(seen) for _ in scene.things] for scene in scenes]


def nearest_colour(rgb: np.ndarray) -> str:
    """The name of the colour in NAMED_COLOURS that is closest to rgb. rgb: three numbers, 0..255"""
    distances = np.square(np.subtract(tuple(NAMED_COLOURS.values()), rgb)).sum(axis=1)
    return tuple(NAMED_COLOURS)[distances.argmin()]


def accuracy(
    judge: Judge, emoji: Emoji, count: int = 1000, split: str = "heldout", seed: int = 3
) -> dict[str, float]:
    """Measure how often the judge is right about composed pictures.

    Returns a dictionary: "thing", "style" or "tint" -> the share of right answers. Tints are
    compared only for tinted things. By default, the pictures show (thing, background) pairs that
    training never shows.
    """
    real = batch(emoji, MINI.size, count, seed, step=0, split=split)
    right: dict[str, list[bool]] = {name: [] for name in Seen._fields}
    for scene, opinions in zip(real.scenes, look(judge, real.images, real.scenes), strict=True):
        for thing, tint, seen in zip(scene.things, scene.tints, opinions, strict=True):
            right["thing"].append(seen.thing == thing)
            right["style"].append(seen.style == scene.style)
            right["tint"] += [seen.tint == tint] if tint else []
    return {name: sum(verdicts) / len(verdicts) for name, verdicts in right.items()}


def save_judge(path: Path, judge: Judge, figures: dict) -> None:
    """Write the judge in half precision. The file's header holds the vocabularies and `figures`.

    The vocabularies are the names of the things, styles and colours that the judge knows.

    figures: facts about the judge, such as its accuracy
    """
    header = {name: json.dumps(getattr(judge, name)) for name in VOCABULARIES}
    header["figures"] = json.dumps(figures)
    with written_whole(path) as unfinished:
        write_tensors(unfinished, judge.state_dict(), header, torch.float16)


def load_judge(path: Path = WEIGHTS / "judge.safetensors") -> Judge:
    """Read a judge from a file that save_judge() wrote. The judge is ready for look().

    Raises ValueError if the file does not hold a judge, or if the file is damaged.
    """
    try:
        header, state = read_metadata(path), read_tensors(path)
        words: list[Any] = [parse_json(header.get(name, "null")) for name in VOCABULARIES]
        for name, some in zip(VOCABULARIES, words, strict=True):
            check_value(name, some, tuple[str, ...])
            if not 0 < len(some) <= MOST_WORDS:
                raise ValueError(f"its header lists {len(some)} {name}, not 1 to {MOST_WORDS}")
        with without_numbers():
            judge = Judge(*map(tuple, words))
        fill_whole(judge, state, "it")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"Cannot read a judge from {path} ({reason}). Restore the file from the repository, or "
            "train the judge again with `minisd train judge`."
        ) from error
    return judge.eval().requires_grad_(False)
