"""The judge: a small network that says what a picture shows. It serves the evaluation alone.

It knows the drawings, but not the generator's pictures: it is trained on crops around one thing,
at other sizes, places and shades, and never on a (thing, background) pair that is held out. Half of
the crops come from the cut-outs, on grounds of any colour; the others went through the autoencoder.
Its decoder draws every picture that is judged, and a judge that knows sharp drawings alone takes
what it blurs for another style. What colour the background has the judge is not asked.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from minisd.checkpoints.write import write_tensors, written_whole
from minisd.config import MINI, WEIGHTS
from minisd.training.captions import COLOURS, Scene, pick
from minisd.training.data import (
    LITTLE,
    SHIFT,
    Emoji,
    batch,
    held_out,
    middles,
    shrunk,
    tinted,
    to_tensor,
)
from minisd.training.loop import Recipe, fast_precision, generator_at, train
from minisd.training.parallel import share
from minisd.vae import VAE

# A step of 64 takes about 0.16 s of one core: 16 minutes.
RECIPE = Recipe(steps=6000, rate=0.02, ema=0.99)
DECODED = 6000  # pictures through the autoencoder
SIDE = 64  # px of a crop
WINDOW = LITTLE + 2 * SHIFT  # of the canvas: as far as a little thing may reach from its place
SIZES = range(26, 61, 4)  # px of a drawing before its crop is brought to SIDE: blurred to sharp
FILLS = (0.72, 0.95)  # of its crop's side, how much a thing takes
TINTED = 0.3
NO_TINT = -100  # a target that cross_entropy passes over
WORDS = ("things", "styles", "colours")


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
    grid = F.affine_grid(torch.tensor(windows), (len(owners), 3, SIDE, SIDE), align_corners=False)
    return F.grid_sample(images[owners], grid, padding_mode="border", align_corners=False)


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


def any_ground(thing: str, rng: np.random.Generator) -> np.ndarray:
    """A shade to put the thing on, rgb 0..255: any, or one like a named one; no held-out pair."""
    while True:
        shade = rng.integers(0, 256, 3)
        if rng.random() < 0.5:
            shade = COLOURS[pick(tuple(COLOURS), rng)] + rng.integers(-40, 41, 3)
            shade = np.clip(shade, 0, 255)
        if not held_out(thing, nearest_colour(shade)):
            return shade


def example(emoji: Emoji, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """One crop, h w rgb in 0..1 of any size, and the numbers of its thing, style and tint."""
    thing, style = int(rng.integers(len(emoji.things))), int(rng.integers(len(emoji.styles)))
    ground = any_ground(emoji.things[thing], rng)
    pixels = pick(SIZES, rng)
    side = round(pixels / rng.uniform(*FILLS))
    tile = shrunk(emoji, pixels)[thing, style].astype(np.float32) / 255
    colours, tint = tuple(COLOURS), NO_TINT
    if rng.random() < TINTED:
        name = pick([colour for colour in colours if colour != nearest_colour(ground)], rng)
        tile, tint = tinted(tile, name), colours.index(name)
    tile = tile[:, ::-1] if rng.random() < 0.5 else tile
    picture = np.full((side, side, 3), ground / 255, np.float32)
    left, top = rng.integers(0, side - pixels + 1, 2)
    there = (slice(top, top + pixels), slice(left, left + pixels))
    picture[there] = tile[..., :3] + (1 - tile[..., 3:]) * picture[there]
    return picture, [thing, style, tint]


def shaded(images: Tensor, generator: torch.Generator) -> Tensor:
    """In other shades: b 3 h w."""
    channels = (len(images), 3, 1, 1)
    gain = 1 + 0.1 * torch.randn(channels, generator=generator)
    return images * gain + 0.1 * torch.randn(channels, generator=generator)


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Other shades, some blur, some noise: b 3 h w."""
    each = (len(images), 1, 1, 1)
    images = shaded(images, generator)
    soft = F.pad(images, (2, 2, 2, 2), mode="replicate")
    soft = F.avg_pool2d(F.avg_pool2d(soft, 3, stride=1), 3, stride=1)
    images = images.lerp(soft, torch.rand(each, generator=generator))
    noise = torch.randn(images.shape, generator=generator)
    return images + 0.1 * torch.rand(each, generator=generator) * noise


def examples(emoji: Emoji, count: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The step-th batch to learn from. returns: crops b 3 64 64, targets b 3."""
    rng = np.random.default_rng([seed, step])
    made = [example(emoji, rng) for _ in range(count)]
    images = [F.interpolate(to_tensor([one]), (SIDE, SIDE), mode="bilinear") for one, _ in made]
    targets = torch.tensor([target for _, target in made])
    return disturbed(torch.cat(images), generator_at(seed, step)), targets


@torch.no_grad()
def decoded_crops(vae: VAE, emoji: Emoji, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of composed pictures as the autoencoder returns them; no held-out pair is among them.

    count: of pictures, in hundreds    returns: crops n 3 64 64, in half precision, targets n 3
    """
    found, targets, colours = [], [], tuple(COLOURS)
    for step in tqdm(range(count // 100), desc="pictures through the autoencoder", unit="00"):
        real = batch(emoji, MINI.size, 100, seed, step)
        drawn = vae.decode(vae.encode(real.images).mode())
        found.append(crops(drawn, real.scenes).half())
        for scene in real.scenes:
            style = emoji.styles.index(scene.style)
            for thing, tint in zip(scene.things, scene.tints, strict=True):
                named = colours.index(tint) if tint else NO_TINT
                targets.append([emoji.things.index(thing), style, named])
    return torch.cat(found), torch.tensor(targets)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """A little to some side, a little nearer or farther, half of them mirrored: b 3 h w."""
    zoom = 1 + 0.1 * torch.randn(len(images), generator=generator)
    mirror = torch.randint(0, 2, (len(images),), generator=generator) * 2 - 1
    windows = torch.zeros(len(images), 2, 3)
    windows[:, 0, 0], windows[:, 1, 1] = zoom * mirror, zoom
    windows[:, :, 2] = 0.1 * torch.randn(len(images), 2, generator=generator)
    grid = F.affine_grid(windows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def lesson(
    emoji: Emoji, decoded: tuple[Tensor, Tensor], count: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """The step-th batch, half of it from the cut-outs, half decoded. See examples()."""
    images, targets = examples(emoji, count - count // 2, seed, step)
    known, theirs = decoded
    generator = generator_at(seed + 1, step)
    chosen = torch.randint(0, len(known), (count // 2,), generator=generator)
    again = shaded(moved(known[chosen].float(), generator), generator)
    return torch.cat([images, again]), torch.cat([targets, theirs[chosen]])


def judge_loss(judge: Judge, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the three answers per crop; the tint counts where there is one.

    Of several processes each sees its share of the crops.
    """
    images, targets = share(images), share(targets)
    with fast_precision():
        answers = judge(images)
    loss = nn.CrossEntropyLoss(ignore_index=NO_TINT, reduction="sum")  # no mean: maybe of none
    terms = zip(Seen._fields, answers, targets.unbind(dim=1), strict=True)
    return {name: loss(logits.float(), target) / len(images) for name, logits, target in terms}


def train_judge(
    emoji: Emoji,
    decoded: tuple[Tensor, Tensor],
    folder: Path,
    recipe: Recipe = RECIPE,
    batch_size: int = 64,
    seed: int = 0,
    encoded_by: str = "",
) -> Judge:
    """Returns the averaged judge. Resumes from the folder, where it also keeps its log.

    decoded: what decoded_crops() returns    encoded_by: fingerprint of its autoencoder
    """
    torch.manual_seed(seed)
    judge = Judge(emoji.things, emoji.styles, tuple(COLOURS))

    def loss_at(step: int) -> dict[str, Tensor]:
        return judge_loss(judge, *lesson(emoji, decoded, batch_size, seed, step))

    about = {"things": emoji.things, "styles": emoji.styles, "decoded": len(decoded[0])}
    about |= {"encoded_by": encoded_by, "batch_size": batch_size, "seed": seed}
    return train(judge, loss_at, recipe, folder, about)


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


def save(judge: Judge, path: Path, figures: dict) -> None:
    """Write the judge in half precision; the header tells its words and how good it is."""
    header = {name: json.dumps(getattr(judge, name)) for name in WORDS}
    header["figures"] = json.dumps(figures)
    with written_whole(path) as unfinished:
        write_tensors(unfinished, judge.state_dict(), header, torch.float16)


def load(path: Path = WEIGHTS / "judge.safetensors") -> Judge:
    """Read a judge, ready to look. ValueError where the file cannot be read as one."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        judge = Judge(*(tuple(json.loads(header[name])) for name in WORDS))
        judge.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise ValueError(
            f"{path} cannot be read as the judge ({reason}): restore it from the repository, or "
            "train it anew with `minisd train judge`."
        ) from error
    return judge.eval().requires_grad_(False)
