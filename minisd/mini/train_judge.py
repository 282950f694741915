"""Teach the judge what the drawings look like: as they are, and as the autoencoder returns them.

Half of its crops are cut-outs at other sizes and places, on grounds of any colour. The others are
training scenes that came through the autoencoder, moved a little: its decoder draws every picture
that is judged, and a judge that knows sharp drawings alone takes what it blurs for another style.
All are seen in other shades. No held-out (thing, background) pair is composed for it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minisd.config import MINI
from minisd.mini.captions import COLOURS, pick
from minisd.mini.emoji import Emoji, batch, held_out, shrunk, tinted, to_tensor
from minisd.mini.judge import SIDE, Judge, Seen, crops, nearest_colour, through_windows
from minisd.training.loop import Draw, Hyperparameters, generator_at, train
from minisd.vae import VAE

SIZES = range(26, 61, 4)  # px of a drawing before its crop is brought to SIDE: blurred to sharp
FILLS = (0.72, 0.95)  # of its crop's side, how much a thing takes
TINTED = 0.3
NO_TINT = -100  # a target that cross_entropy passes over


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
    """Crops of training scenes as the autoencoder returns them.

    count: of pictures, a multiple of 100
    returns: crops n 3 64 64, in half precision to save memory, and targets n 3 as of example()
    """
    found, targets, colours = [], [], tuple(COLOURS)
    for step in tqdm(range(count // 100), desc="decoding pictures, 100 each", mininterval=5):
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
    """A little to some side, a little nearer or farther, half of them mirrored: b 3 64 64."""
    zoom = 1 + 0.1 * torch.randn(len(images), generator=generator)
    mirror = torch.randint(0, 2, (len(images),), generator=generator) * 2 - 1
    windows = torch.zeros(len(images), 2, 3)
    windows[:, 0, 0], windows[:, 1, 1] = zoom * mirror, zoom
    windows[:, :, 2] = 0.1 * torch.randn(len(images), 2, generator=generator)
    return through_windows(images, windows)


def mixed_batch(
    emoji: Emoji, decoded: tuple[Tensor, Tensor], count: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """The step-th batch, half of it examples() and half decoded crops, moved and shaded anew.

    decoded: what decoded_crops() returns    returns: crops count 3 64 64, targets count 3
    """
    images, targets = examples(emoji, count - count // 2, seed, step)
    known, theirs = decoded
    generator = generator_at(seed + 1, step)
    chosen = torch.randint(0, len(known), (count // 2,), generator=generator)
    again = shaded(moved(known[chosen].float(), generator), generator)
    return torch.cat([images, again]), torch.cat([targets, theirs[chosen]])


def judge_loss(judge: Judge, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the three answers per crop. The tint counts where there is one."""
    answers = judge(images)
    loss = nn.CrossEntropyLoss(ignore_index=NO_TINT, reduction="sum")  # no mean: maybe of none
    terms = zip(Seen._fields, answers, targets.unbind(dim=1), strict=True)
    return {name: loss(logits.float(), target) / len(images) for name, logits, target in terms}


def train_judge(
    emoji: Emoji,
    decoded: tuple[Tensor, Tensor],
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 64,
    seed: int = 0,
    encoded_by: str = "",
) -> Judge:
    """Returns the averaged judge. Resumes from the folder, where it also keeps its log.

    decoded: what decoded_crops() returns
    encoded_by: which VAE returned the crops, so that no run goes on with another's
    """
    torch.manual_seed(seed)
    judge = Judge(emoji.things, emoji.styles, tuple(COLOURS))

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        crops = mixed_batch(emoji, decoded, draw.batch_size, seed, draw.number)
        return judge_loss(judge, *crops)

    about = {"things": emoji.things, "styles": emoji.styles, "decoded": len(decoded[0])}
    about |= {"encoded_by": encoded_by}
    return train(judge, loss_at, settings, folder, batch_size, seed, about)
