"""Train the judge on sharp drawings, and on drawings that the autoencoder has blurred.

A crop is a square picture of one thing. Half of the crops are drawn: emoji of many sizes, at many
places, on backgrounds of any colour. The other half are cut out of training pictures that the
autoencoder has encoded and decoded. The judge needs this half because the decoder blurs every
picture that the mini draws. A judge that knows only sharp drawings would mistake the blur for
another style.

The crops of the second half are moved a little. The shades of all crops are changed. No crop shows
a held-out (thing, background) pair.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minisd.config import MINI
from minisd.mini.captions import NAMED_COLOURS, pick
from minisd.mini.emoji import Emoji
from minisd.mini.judge import CROP_SIDE, Judge, Seen, crops, nearest_colour, through_windows
from minisd.mini.scenes import batch, is_held_out, tiles_at_size, tint_tile, to_tensor
from minisd.training.loop import Draw, Hyperparameters, generator_at, train
from minisd.vae import VAE

# The sides of drawings in px, before the crop is resized to CROP_SIDE. The resizing blurs the
# smallest drawings.
DRAWING_SIZES = range(26, 61, 4)
FILLS = (0.72, 0.95)  # the side of a drawing, divided by the side of its crop
TINTED_CROPS = 0.3  # the share of tinted drawings
NO_TINT = -100  # a target that cross_entropy ignores


def random_background(thing: str, rng: np.random.Generator) -> np.ndarray:
    """A random background colour for a thing, rgb 0..255.

    About half of the colours are close to a named colour. The thing and its background are never a
    held-out pair.
    """
    while True:
        shade = rng.integers(0, 256, 3)
        if rng.random() < 0.5:
            shade = NAMED_COLOURS[pick(tuple(NAMED_COLOURS), rng)] + rng.integers(-40, 41, 3)
            shade = np.clip(shade, 0, 255)
        if not is_held_out(thing, nearest_colour(shade)):
            return shade


def drawn_crop(emoji: Emoji, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Draw one crop: a random thing in a random style on a random background.

    returns: the crop, h w rgb in 0..1, a square of any size; the target: the indices of the thing,
        its style and its tint. If the thing is not tinted, the third index is NO_TINT
    """
    thing, style = int(rng.integers(len(emoji.things))), int(rng.integers(len(emoji.styles)))
    background = random_background(emoji.things[thing], rng)
    pixels = pick(DRAWING_SIZES, rng)
    side = round(pixels / rng.uniform(*FILLS))
    tile = tiles_at_size(emoji, pixels)[thing, style].astype(np.float32) / 255
    colours, tint = tuple(NAMED_COLOURS), NO_TINT
    if rng.random() < TINTED_CROPS:
        name = pick([colour for colour in colours if colour != nearest_colour(background)], rng)
        tile, tint = tint_tile(tile, name), colours.index(name)
    tile = tile[:, ::-1] if rng.random() < 0.5 else tile
    picture = np.full((side, side, 3), background / 255, np.float32)
    left, top = rng.integers(0, side - pixels + 1, 2)
    there = (slice(top, top + pixels), slice(left, left + pixels))
    picture[there] = tile[..., :3] + (1 - tile[..., 3:]) * picture[there]
    return picture, [thing, style, tint]


def change_shades(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change the contrast and the brightness of each channel at random. b 3 h w"""
    channels = (len(images), 3, 1, 1)
    gain = 1 + 0.1 * torch.randn(channels, generator=generator)
    return images * gain + 0.1 * torch.randn(channels, generator=generator)


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change the shades at random, and add some blur and some noise. b 3 h w"""
    each = (len(images), 1, 1, 1)
    images = change_shades(images, generator)
    soft = F.pad(images, (2, 2, 2, 2), mode="replicate")
    soft = F.avg_pool2d(F.avg_pool2d(soft, 3, stride=1), 3, stride=1)
    images = images.lerp(soft, torch.rand(each, generator=generator))
    noise = torch.randn(images.shape, generator=generator)
    return images + 0.1 * torch.rand(each, generator=generator) * noise


def drawn_crops(emoji: Emoji, count: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Draw a batch of crops. returns: crops, b 3 64 64; targets, b 3: thing, style and tint"""
    rng = np.random.default_rng([seed, step])
    made = [drawn_crop(emoji, rng) for _ in range(count)]
    images = [F.interpolate(to_tensor([one]), CROP_SIDE, mode="bilinear") for one, _ in made]
    targets = torch.tensor([target for _, target in made])
    return disturb(torch.cat(images), generator_at(seed, step)), targets


@torch.no_grad()
def decoded_crops(vae: VAE, emoji: Emoji, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Encode and decode training pictures. Then cut out one crop for each thing in them.

    count: number of pictures, a multiple of 100
    returns: crops, n 3 64 64, in half precision to save memory; targets, n 3, as in drawn_crop()
    """
    found, targets, colours = [], [], tuple(NAMED_COLOURS)
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


def move_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and zoom each crop a little, and mirror about half of the crops. b 3 64 64"""
    zoom = 1 + 0.1 * torch.randn(len(images), generator=generator)
    mirror = torch.randint(0, 2, (len(images),), generator=generator) * 2 - 1
    windows = torch.zeros(len(images), 2, 3)
    windows[:, 0, 0], windows[:, 1, 1] = zoom * mirror, zoom
    windows[:, :, 2] = 0.1 * torch.randn(len(images), 2, generator=generator)
    return through_windows(images, windows)


def mixed_batch(
    emoji: Emoji, decoded: tuple[Tensor, Tensor], count: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Make a batch of crops. Half of the crops are drawn, and half are chosen from `decoded`.

    The chosen crops are moved a little, and their shades are changed.

    decoded: what decoded_crops() returns
    returns: crops, b 3 64 64, where b = count; targets, b 3
    """
    images, targets = drawn_crops(emoji, count - count // 2, seed, step)
    known, theirs = decoded
    generator = generator_at(seed + 1, step)
    chosen = torch.randint(0, len(known), (count // 2,), generator=generator)
    again = change_shades(move_crops(known[chosen].float(), generator), generator)
    return torch.cat([images, again]), torch.cat([targets, theirs[chosen]])


def judge_loss(judge: Judge, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of the judge's three answers. Returns a dictionary: answer -> loss.

    Each loss is a sum over the crops, divided by the number of crops. For the tint, the sum is only
    over crops of tinted things.
    """
    answers = judge(images)
    # a mean over the tinted things would be NaN if no thing is tinted
    loss = nn.CrossEntropyLoss(ignore_index=NO_TINT, reduction="sum")
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
    """Train a judge. Returns the judge with its EMA weights.

    If the folder holds an earlier run, the training resumes that run. Raises the same errors as
    train().

    decoded: what decoded_crops() returns
    encoded_by: the fingerprint of the VAE that made the crops. The run records the fingerprint,
        and cannot be resumed with another fingerprint
    """
    torch.manual_seed(seed)
    judge = Judge(emoji.things, emoji.styles, tuple(NAMED_COLOURS))

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        crops = mixed_batch(emoji, decoded, draw.batch_size, seed, draw.number)
        return judge_loss(judge, *crops)

    about = {"things": emoji.things, "styles": emoji.styles, "decoded": len(decoded[0])}
    about |= {"encoded_by": encoded_by}
    return train(judge, loss_at, settings, folder, batch_size, seed, about)
