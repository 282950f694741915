"""The judge: a small network that says what a picture shows. It serves the evaluation alone.

It knows the drawings, but not the generator's pictures; judge_training.py says what it learns from.
What colour the background has it is not asked: that can be measured.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.checkpoints.load import fill_whole
from minisd.checkpoints.read import metadata, read
from minisd.checkpoints.write import write_tensors, written_whole
from minisd.config import MINI, WEIGHTS
from minisd.files.json_files import check_value, parse_json
from minisd.mini.captions import COLOURS, Scene
from minisd.mini.emoji import LITTLE, SHIFT, Emoji, batch, middles

SIDE = 64  # px of a crop
WINDOW = LITTLE + 2 * SHIFT  # of the canvas: as far as a little thing may reach from its place
WORDS = ("things", "styles", "colours")
MOST_WORDS = 1000  # of each


class Seen(NamedTuple):
    """What the judge takes one crop for. The tint means something only where there is one."""

    thing: str
    style: str
    tint: str


class Block(nn.Module):
    """Two convolutions added to the input, at half its size.

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
    """Three answers about one crop: what thing it shows, in which style, and in which tint.

    Each drawing, a thing in a style, is a class of its own, as every thing's styles differ in
    something else. A thing's chance is the sum over its styles, a style's that over all things.

    crop: b 3 64 64 in [-1, 1]    returns: logits of the thing, of the style, of the tint
    """

    def __init__(self, things: tuple[str, ...], styles: tuple[str, ...], colours: tuple[str, ...]):
        super().__init__()
        self.things, self.styles, self.colours = things, styles, colours
        widths = (32, 64, 64, 64)
        self.conv_in = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(widths, widths[1:]))
        self.norm_out = nn.GroupNorm(8, widths[-1])
        # sees all 4 x 4 places: averaged over them the layout is lost, and it learns far slower
        self.conv_out = nn.Conv2d(widths[-1], len(things) * len(styles) + len(colours), 4)

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        x = self.conv_in(crop)
        for block in self.blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        logits = rearrange(x, "b answers 1 1 -> b answers")
        drawing, tint = logits[:, : -len(self.colours)], logits[:, -len(self.colours) :]
        drawing = rearrange(
            drawing, "b (things styles) -> b things styles", styles=len(self.styles)
        )
        return drawing.logsumexp(dim=2), drawing.logsumexp(dim=1), tint


def through_windows(images: Tensor, windows: Tensor) -> Tensor:
    """What each picture shows in its window, b 3 64 64; beyond the border its colour goes on.

    images: b 3 h w    windows: b 2 3, affine maps into a picture whose sides are at -1 and 1
    """
    grid = F.affine_grid(windows, [len(images), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def crops(images: Tensor, scenes: list[Scene]) -> Tensor:
    """What the judge looks at: around each thing, scene after scene, where the thing belongs.

    images: b 3 h w    returns: n 3 64 64; a lone large thing's is the whole picture
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
    """What the judge sees in each picture, for each thing of its scene. images: b 3 h w."""
    answers = [logits.argmax(dim=1).tolist() for logits in judge(crops(images, scenes))]
    words = (judge.things, judge.styles, judge.colours)
    seen = iter([Seen(*(of[i] for of, i in zip(words, row))) for row in zip(*answers)])
    return [[next(seen) for _ in scene.things] for scene in scenes]


def nearest_colour(rgb: np.ndarray) -> str:
    """The named colour that lies closest. rgb: three shades, 0..255."""
    return min(COLOURS, key=lambda name: np.square(np.subtract(COLOURS[name], rgb)).sum())


def accuracy(
    judge: Judge, emoji: Emoji, count: int = 1000, split: str = "heldout", seed: int = 3
) -> dict[str, float]:
    """The share of real things that the judge is right about: thing, style, tint of tinted ones.

    Real means composed as the generator's pictures are, on pairs that neither was trained on.
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
    """Write the judge in half precision; the header tells its words and how good it is."""
    header = {name: json.dumps(getattr(judge, name)) for name in WORDS}
    header["figures"] = json.dumps(figures)
    with written_whole(path) as unfinished:
        write_tensors(unfinished, judge.state_dict(), header, torch.float16)


def load_judge(path: Path = WEIGHTS / "judge.safetensors") -> Judge:
    """Read a judge, ready to look. ValueError where the file cannot be read as one."""
    try:
        header, state = metadata(path), read(path)
        words = [parse_json(header.get(name, "null")) for name in WORDS]
        for name, some in zip(WORDS, words, strict=True):
            check_value(name, some, tuple[str, ...])
            if not 0 < len(some) <= MOST_WORDS:
                raise ValueError(f"has {len(some)} {name} in its header")
        with torch.device("meta"):
            judge = Judge(*map(tuple, words))
        fill_whole(judge, state, "it")
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{path} cannot be read as the judge ({reason}): restore it from the repository, or "
            "train it anew with `minisd train judge`."
        ) from error
    return judge.eval().requires_grad_(False)
