"""Compose the mini's training pictures: emoji on coloured backgrounds.

A batch depends only on the seed and the step. So no picture is stored, and a training that is
resumed gets the same batches as a training without a break.

About one in twelve (thing, background) pairs is held out: no training picture shows the pair. If
the model can draw these pairs, it has not only memorized its training pictures.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from minisd.mini import captions as grammar
from minisd.mini.captions import NAMED_COLOURS, SPOTS, Scene, pick
from minisd.mini.emoji import Emoji

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 21 / 256  # of all (thing, background) pairs
TWO_THINGS_SHARE = 0.10
SMALL_SHARE = 0.10  # of the scenes with one thing
TINTED_SHARE = 0.18  # of all things
ALTERED_SHARE = 0.15  # of the autoencoder's training pictures

# These three lengths are fractions of the canvas.
LARGE_WIDTH = 0.8  # of one large thing
SMALL_WIDTH = 0.44  # of one small thing, or of each of two things
SHIFT = 2 / 64  # the largest random shift of a thing in each direction. The thing still fits
JITTER = 8  # of 255: the largest difference between a background and its named colour, per channel

# Each batch has two streams of random numbers: one to compose pictures, and one to alter them.
# Drawing from one stream does not change the other stream.
COMPOSE, ALTER = 0, 1


@dataclass(frozen=True)
class Batch:
    """Pictures, and the caption, the scene and the mask of each picture.

    images: b 3 h w in [-1, 1]
    masks: b 1 h w, 1 where a thing is, and 0 elsewhere
    """

    images: Tensor
    captions: list[str]
    scenes: list[Scene]
    masks: Tensor


@cache
def tiles_at_size(emoji: Emoji, pixels: int) -> np.ndarray:
    """Resize the cut-outs of all emoji to `pixels` x `pixels`.

    The colours are multiplied by the opacity before the cut-outs shrink. Otherwise the colours of
    invisible pixels would mix with the colours of visible pixels.

    returns: thing style h w rgba, 0..255, with colours multiplied by the opacity
    """
    small = np.empty((len(emoji.things), len(emoji.styles), pixels, pixels, 4), np.uint8)
    for where in np.ndindex(small.shape[:2]):
        tile = Image.fromarray(emoji.tiles[where]).convert("RGBa")  # RGB times opacity
        small[where] = np.asarray(tile.resize((pixels, pixels), Image.Resampling.BICUBIC))
    colour, alpha = small[..., :3], small[..., 3:]
    return np.concatenate([np.minimum(colour, alpha), alpha], axis=-1)  # a cubic filter overshoots


def is_held_out(thing: str, background: str) -> bool:
    """Whether this (thing, background) pair is held out, so that training never shows the pair.

    A hash of the two names decides, so the answer is the same on every machine.
    """
    digest = hashlib.sha256(f"{thing} on {background}".encode()).digest()
    return digest[0] < round(HELD_OUT_SHARE * 256)


@cache
def allowed_things(emoji: Emoji, split: str) -> dict[str, tuple[str, ...]]:
    """Find the things that the pictures of a split may show on each background.

    split: "train" or "heldout"
    returns: a dictionary: background -> things
    """
    wanted = split == "heldout"
    return {
        colour: tuple(thing for thing in emoji.things if is_held_out(thing, colour) == wanted)
        for colour in NAMED_COLOURS
    }


def draw_scene(emoji: Emoji, split: str, rng: np.random.Generator) -> Scene:
    """A random scene of this split, "train" or "heldout"."""
    background = pick(tuple(NAMED_COLOURS), rng)
    things = allowed_things(emoji, split)[background]
    count = 2 if rng.random() < TWO_THINGS_SHARE else 1
    others = tuple(colour for colour in NAMED_COLOURS if colour != background)
    tints = [pick(others, rng) if rng.random() < TINTED_SHARE else None for _ in range(count)]
    shown = tuple(things[index] for index in rng.choice(len(things), count, replace=False))
    spot = pick(tuple(SPOTS), rng) if count == 1 and rng.random() < SMALL_SHARE else None
    return Scene(shown, tuple(tints), pick(emoji.styles, rng), background, spot)


def tint_tile(tile: np.ndarray, colour: str) -> np.ndarray:
    """Recolour a cut-out in shades of one colour.

    Dark parts become a dark shade of the colour. Light parts become a light shade of the colour.

    tile: the cut-out, h w rgba in 0..1, with colours multiplied by the opacity
    colour: a key of NAMED_COLOURS
    """
    alpha = tile[..., 3:]
    light = tile[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)  # luma weights, BT.601
    light = light[..., None] / np.maximum(alpha, 1e-3)
    average = (light * alpha).sum() / alpha.sum()
    light = np.clip(0.5 + 0.8 * (light - average), 0, 1)  # dark things get the colour, too
    pure = np.array(NAMED_COLOURS[colour], np.float32) / 255
    shade = pure * np.minimum(2 * light, 1) + (1 - pure) * np.maximum(2 * light - 1, 0)
    return np.concatenate([shade * alpha, alpha], axis=-1)


def middles(scene: Scene) -> list[tuple[float, float]]:
    """The place of each thing's middle: (distance from the left side, distance from the top).

    Both distances are fractions of the canvas.
    """
    if scene.spot is not None:
        return [SPOTS[scene.spot][0]]
    if len(scene.things) == 2:
        return [(0.26, 0.5), (0.74, 0.5)]
    return [(0.5, 0.5)]


def compose_scene(
    emoji: Emoji, scene: Scene, size: int, rng: np.random.Generator, mirror: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Compose a picture of the scene. Returns the picture, and a silhouette of the things.

    mirror: whether to flip about half of the things left to right. A flipped thing stays at its
        place, so captions stay true
    returns: the picture, h w rgb in 0..1; the silhouette, h w, 1 where a thing is and 0 elsewhere
    """
    shade = np.array(NAMED_COLOURS[scene.background]) + rng.integers(-JITTER, JITTER + 1, 3)
    shade = np.clip(shade / 255, 0, 1)
    picture = np.broadcast_to(shade, (size, size, 3)).astype(np.float32)
    silhouette = np.zeros((size, size), np.float32)
    alone = len(scene.things) == 1 and scene.spot is None
    pixels = round((LARGE_WIDTH if alone else SMALL_WIDTH) * size)
    tiles = tiles_at_size(emoji, pixels)
    style = emoji.styles.index(scene.style)
    for thing, tint, middle in zip(scene.things, scene.tints, middles(scene), strict=True):
        tile = tiles[emoji.things.index(thing), style].astype(np.float32) / 255
        tile = tint_tile(tile, tint) if tint else tile
        if mirror and rng.random() < 0.5:  # without mirror, no random number is drawn
            tile = tile[:, ::-1]
        shifted = np.array(middle) + SHIFT * rng.uniform(-1, 1, 2)
        left, top = (round(at * size - pixels / 2) for at in shifted)
        there = (slice(top, top + pixels), slice(left, left + pixels))
        colour, alpha = tile[..., :3], tile[..., 3:]
        picture[there] = colour + (1 - alpha) * picture[there]
        silhouette[there] = np.maximum(silhouette[there], alpha[..., 0] >= 0.5)
    return picture, silhouette


def random_stream(seed: int, step: int, split: str, use: int) -> np.random.Generator:
    """Create one of the two generators of random numbers for a batch.

    use: COMPOSE (the numbers are used to compose pictures) or ALTER (to alter the pictures)

    Raises ValueError if the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"The split {split!r} is unknown. Choose one of {', '.join(SPLITS)}.")
    return np.random.default_rng([seed, step, SPLITS.index(split), use])


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Join pictures into one tensor.

    pictures: each h w rgb in 0..1    returns: b 3 h w in [-1, 1]
    """
    images = torch.from_numpy(np.stack(pictures))
    return rearrange(images, "b h w c -> b c h w").contiguous() * 2 - 1


def batch(
    emoji: Emoji,
    size: int,
    batch_size: int,
    seed: int,
    step: int,
    split: str = "train",
    mirror: bool = False,
) -> Batch:
    """Compose the batch of this step: pictures of size x size pixels, with captions.

    In the split "heldout", every caption names everything in the scene.

    mirror: whether to flip about half of the things left to right; see compose_scene()
    """
    rng = random_stream(seed, step, split, COMPOSE)
    pictures, silhouettes, texts, scenes = [], [], [], []
    train = split == "train"
    for _ in range(batch_size):
        scene = draw_scene(emoji, split, rng)
        picture, silhouette = compose_scene(emoji, scene, size, rng, mirror)
        texts.append(grammar.caption(scene, rng) if train else grammar.full_caption(scene))
        scenes.append(scene)
        pictures.append(picture)
        silhouettes.append(silhouette)
    masks = rearrange(torch.from_numpy(np.stack(silhouettes)), "b h w -> b 1 h w")
    return Batch(to_tensor(pictures), texts, scenes, masks)


def captions(emoji: Emoji, count: int, seed: int = 0) -> Iterator[str]:
    """Yield random captions, to train the tokenizer."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield grammar.caption(draw_scene(emoji, "train", rng), rng, grammar.PLAIN_HABITS)


# The autoencoder is also trained on pictures like the inputs of img2img and inpainting.


def random_colour(rng: np.random.Generator) -> tuple[int, ...]:
    """A random colour, as a tuple for Pillow: (red, green, blue), each 0..255."""
    return tuple(int(part) for part in rng.integers(0, 256, 3))


def plain_picture(size: int, rng: np.random.Generator) -> Image.Image:
    """A picture of one random colour."""
    return Image.new("RGB", (size, size), random_colour(rng))


def scribble(size: int, rng: np.random.Generator) -> Image.Image:
    """A few bent lines on a plain background."""
    picture = plain_picture(size, rng)
    for _ in range(rng.integers(2, 8)):
        points = rng.uniform(0, size, (rng.integers(2, 6), 2))
        width = int(rng.integers(1, max(size // 10, 2)))
        line = [tuple(point) for point in points]
        ImageDraw.Draw(picture).line(line, random_colour(rng), width, joint="curve")
    return picture


def polygons(size: int, rng: np.random.Generator) -> Image.Image:
    """A few polygons of random colours, one on top of another."""
    picture = plain_picture(size, rng)
    for _ in range(rng.integers(1, 6)):
        points = rng.uniform(0, size, (rng.integers(3, 7), 2))
        ImageDraw.Draw(picture).polygon([tuple(point) for point in points], random_colour(rng))
    return picture


def posterise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Reduce the picture to a few shades per channel."""
    levels = int(rng.integers(2, 6))
    pixels = np.asarray(picture, np.float32) / 255
    return Image.fromarray((np.round(pixels * levels) / levels * 255).astype(np.uint8))


def blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur the picture, a little or a lot."""
    return picture.filter(ImageFilter.GaussianBlur(picture.width * rng.uniform(0.01, 0.06)))


def with_hole(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy of the picture with a grey or black hole, like the input of an inpainting model."""
    picture = picture.copy()
    size = picture.width
    left, top = (int(edge) for edge in rng.integers(-size // 8, size * 3 // 4, 2))
    width, height = (int(edge) for edge in rng.integers(size // 4, size * 3 // 4, 2))
    pen = ImageDraw.Draw(picture)
    shape = pick((pen.rectangle, pen.ellipse), rng)
    shape((left, top, left + width, top + height), fill=pick(((128, 128, 128), (0, 0, 0)), rng))
    return picture


DISTORTIONS = (posterise, blur, with_hole)
SUBSTITUTES = (scribble, polygons, plain_picture)


def alter_picture(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distort the picture, or return another kind of picture instead. h w rgb in 0..1"""
    if rng.random() < 0.5:
        other = pick(SUBSTITUTES, rng)(len(picture), rng)
        return np.asarray(other, np.float32) / 255
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    return np.asarray(pick(DISTORTIONS, rng)(image, rng), np.float32) / 255


def vae_batch(
    emoji: Emoji, size: int, batch_size: int, seed: int, step: int, split: str = "train"
) -> Batch:
    """Compose a batch for the training of the autoencoder, and alter some of the pictures.

    The captions, scenes and masks of the batch describe the pictures before the changes.
    """
    composed = batch(emoji, size, batch_size, seed, step, split)
    rng = random_stream(seed, step, split, ALTER)
    images = []
    for image in composed.images:
        if rng.random() < ALTERED_SHARE:
            picture = rearrange(image, "c h w -> h w c").numpy() / 2 + 0.5
            image = to_tensor([alter_picture(picture.clip(0, 1), rng)])[0]
        images.append(image)
    return replace(composed, images=torch.stack(images))
