"""The mini model's training pictures: cut-outs on coloured grounds, composed as they are needed.

A batch is a pure function of (seed, step): nothing is stored, and training resumes exactly.
About one in twelve (thing, background) pairs is never composed for training; how well the model
draws those is what it has understood rather than remembered.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFilter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minisd.checkpoints.read import metadata
from minisd.config import WEIGHTS
from minisd.files.json_files import check_value, parse_json
from minisd.files.pictures import in_our_words
from minisd.mini.captions import (
    COLOURS,
    PLAIN_HABITS,
    SPOTS,
    Scene,
    caption,
    full_caption,
    pick,
)

SPLITS = ("train", "heldout")
HELD_OUT = 21 / 256  # of all (thing, background) pairs
TWO_THINGS = 0.10
SMALL = 0.10  # of lone things
TINTED = 0.18
ALTERED = 0.15  # of the autoencoder's pictures

FINE_THINGS = ("cat", "tiger", "rabbit", "lion", "owl", "butterfly", "bee", "snail")
FINE_THINGS += ("maple leaf", "sunflower", "strawberry", "watermelon")  # drawn with thin lines

# All lengths are fractions of the canvas.
LARGE = 0.8  # how wide a lone thing is
LITTLE = 0.44  # and a small one, or each of two
SHIFT = 2 / 64  # from where it belongs, either way; with it a thing still fits
JITTER = 8  # of 255: how far a ground's shade is from its colour's, per channel

COMPOSE, ALTER = 0, 1  # two streams of random numbers per batch, so that neither shifts the other
LARGEST_TILE = 1024  # px; those of docs.make.draw_emoji have 104


@dataclass(frozen=True, eq=False)
class Emoji:
    """The cut-outs. tiles: thing style h w rgba, 0..255, colours not multiplied by opacity."""

    things: tuple[str, ...]
    styles: tuple[str, ...]
    categories: dict[str, str]  # thing -> "animal", "plant", "food", "person" or "object"
    sources: dict[str, dict[str, str]]  # style -> package, version, author, licence ...
    tiles: np.ndarray

    @classmethod
    def load(cls, path: Path = WEIGHTS / "emoji.safetensors") -> "Emoji":
        """Read the file that docs.make.draw_emoji writes. ValueError where it cannot be read."""
        try:
            header = metadata(path)
            with safe_open(path, framework="np") as file:
                categories, sources = (parse_json(header[name]) for name in ("things", "styles"))
                check_value("things", categories, dict)
                check_value("styles", sources, dict)
                names = [[f"{thing}/{style}" for style in sources] for thing in categories]
                tiles = [[read_tile(file.get_tensor(name)) for name in row] for row in names]
                tiles = np.array(tiles)
        except (SafetensorError, LookupError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read as the training cut-outs ({error}): restore it from the "
                "repository, or draw it anew with `python -m docs.make.draw_emoji`."
            ) from error
        return cls(tuple(categories), tuple(sources), categories, sources, tiles)

    def only(self, things: tuple[str, ...]) -> "Emoji":
        """The cut-outs of these things alone, in every style."""
        chosen = [self.things.index(thing) for thing in things]
        return replace(self, things=things, tiles=self.tiles[chosen])


@dataclass(frozen=True)
class Batch:
    """Pictures and what is known of them. images: b 3 h w in [-1, 1]; masks: b 1 h w, 1 = thing."""

    images: Tensor
    captions: list[str]
    scenes: list[Scene]
    masks: Tensor


def read_tile(png: np.ndarray) -> np.ndarray:
    """h w rgba of one PNG file given as its bytes. ValueError: it is none, or far too large."""
    with in_our_words("a cut-out"), Image.open(io.BytesIO(png.tobytes()), formats=["PNG"]) as tile:
        if max(tile.size) > LARGEST_TILE:
            raise ValueError("far larger than a cut-out")
        return np.asarray(tile.convert("RGBA"))


@cache
def shrunk(emoji: Emoji, pixels: int) -> np.ndarray:
    """All tiles at another size: thing style h w rgba, 0..255, colours multiplied by opacity.

    Multiplied before they are shrunk: else the colour of invisible pixels would bleed in.
    """
    small = np.empty((len(emoji.things), len(emoji.styles), pixels, pixels, 4), np.uint8)
    for where in np.ndindex(small.shape[:2]):
        tile = Image.fromarray(emoji.tiles[where]).convert("RGBa")  # a: multiplied by opacity
        small[where] = np.asarray(tile.resize((pixels, pixels), Image.Resampling.BICUBIC))
    colour, alpha = small[..., :3], small[..., 3:]
    return np.concatenate([np.minimum(colour, alpha), alpha], axis=-1)  # cubic filters overshoot


def held_out(thing: str, background: str) -> bool:
    """Whether this pair is kept from training: by a hash, the same on every machine."""
    digest = hashlib.sha256(f"{thing} on {background}".encode()).digest()
    return digest[0] < round(HELD_OUT * 256)


@cache
def pairs(emoji: Emoji, split: str) -> dict[str, tuple[str, ...]]:
    """The things that the split may put on each background."""
    wanted = split == "heldout"
    return {
        colour: tuple(thing for thing in emoji.things if held_out(thing, colour) == wanted)
        for colour in COLOURS
    }


def draw_scene(emoji: Emoji, split: str, rng: np.random.Generator) -> Scene:
    """What to show, at random."""
    background = pick(tuple(COLOURS), rng)
    things = pairs(emoji, split)[background]
    count = 2 if rng.random() < TWO_THINGS else 1
    other_colours = tuple(colour for colour in COLOURS if colour != background)
    tints = [pick(other_colours, rng) if rng.random() < TINTED else None for _ in range(count)]
    shown = tuple(things[index] for index in rng.choice(len(things), count, replace=False))
    spot = pick(tuple(SPOTS), rng) if count == 1 and rng.random() < SMALL else None
    return Scene(shown, tuple(tints), pick(emoji.styles, rng), background, spot)


def tinted(tile: np.ndarray, colour: str) -> np.ndarray:
    """The tile in shades of one colour: dark parts towards black, light parts towards white.

    tile: h w rgba in 0..1, colours multiplied by opacity.
    """
    alpha = tile[..., 3:]
    light = tile[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)  # luma weights, BT.601
    light = light[..., None] / np.maximum(alpha, 1e-3)
    average = (light * alpha).sum() / alpha.sum()
    light = np.clip(0.5 + 0.8 * (light - average), 0, 1)  # so that a dark thing gets its colour too
    pure = np.array(COLOURS[colour], np.float32) / 255
    shade = pure * np.minimum(2 * light, 1) + (1 - pure) * np.maximum(2 * light - 1, 0)
    return np.concatenate([shade * alpha, alpha], axis=-1)


def middles(scene: Scene) -> list[tuple[float, float]]:
    """Where the things' middles belong, (right, down) as fractions of the canvas."""
    if scene.spot is not None:
        return [SPOTS[scene.spot][0]]
    if len(scene.things) == 2:
        return [(0.26, 0.5), (0.74, 0.5)]
    return [(0.5, 0.5)]


def compose(
    emoji: Emoji, scene: Scene, size: int, rng: np.random.Generator, mirror: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The scene as a picture, h w rgb in 0..1, and as a silhouette, h w of 0 and 1.

    mirror: turn each cut-out left to right half of the time, in its place: captions stay true
    """
    shade = np.array(COLOURS[scene.background]) + rng.integers(-JITTER, JITTER + 1, 3)
    shade = np.clip(shade / 255, 0, 1)
    picture = np.broadcast_to(shade, (size, size, 3)).astype(np.float32)
    silhouette = np.zeros((size, size), np.float32)
    alone = len(scene.things) == 1 and scene.spot is None
    pixels = round((LARGE if alone else LITTLE) * size)
    tiles = shrunk(emoji, pixels)
    style = emoji.styles.index(scene.style)
    for thing, tint, middle in zip(scene.things, scene.tints, middles(scene), strict=True):
        tile = tiles[emoji.things.index(thing), style].astype(np.float32) / 255
        tile = tinted(tile, tint) if tint else tile
        if mirror and rng.random() < 0.5:  # no number drawn without: old runs stay what they were
            tile = tile[:, ::-1]
        shifted = np.array(middle) + SHIFT * rng.uniform(-1, 1, 2)
        left, top = (round(at * size - pixels / 2) for at in shifted)
        there = (slice(top, top + pixels), slice(left, left + pixels))
        colour, alpha = tile[..., :3], tile[..., 3:]
        picture[there] = colour + (1 - alpha) * picture[there]
        silhouette[there] = np.maximum(silhouette[there], alpha[..., 0] >= 0.5)
    return picture, silhouette


def random_stream(seed: int, step: int, split: str, use: int) -> np.random.Generator:
    """The random numbers of one batch. use: COMPOSE or ALTER."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: it is one of {', '.join(SPLITS)}")
    return np.random.default_rng([seed, step, SPLITS.index(split), use])


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Pictures h w rgb in 0..1 -> b 3 h w in [-1, 1]."""
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
    """The step-th batch: pictures of size x size with captions. Held-out scenes name everything.

    mirror: turn half of the cut-outs left to right, as compose does
    """
    rng = random_stream(seed, step, split, COMPOSE)
    pictures, silhouettes, texts, scenes = [], [], [], []
    for _ in range(batch_size):
        scene = draw_scene(emoji, split, rng)
        picture, silhouette = compose(emoji, scene, size, rng, mirror)
        texts.append(caption(scene, rng) if split == "train" else full_caption(scene))
        scenes.append(scene)
        pictures.append(picture)
        silhouettes.append(silhouette)
    masks = rearrange(torch.from_numpy(np.stack(silhouettes)), "b h w -> b 1 h w")
    return Batch(to_tensor(pictures), texts, scenes, masks)


def captions(emoji: Emoji, count: int, seed: int = 0) -> Iterator[str]:
    """Sample captions to train the tokenizer's vocabulary on."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield caption(draw_scene(emoji, "train", rng), rng, PLAIN_HABITS)


# What the autoencoder sees besides: the inputs of the img2img and inpainting lessons.


def random_colour(rng: np.random.Generator) -> tuple[int, ...]:
    """Any colour, as Pillow wants it."""
    return tuple(int(part) for part in rng.integers(0, 256, 3))


def plain(size: int, rng: np.random.Generator) -> Image.Image:
    """One colour everywhere."""
    return Image.new("RGB", (size, size), random_colour(rng))


def scribble(size: int, rng: np.random.Generator) -> Image.Image:
    """A few bent lines on one colour."""
    picture = plain(size, rng)
    for _ in range(rng.integers(2, 8)):
        points = rng.uniform(0, size, (rng.integers(2, 6), 2))
        width = int(rng.integers(1, max(size // 10, 2)))
        line = [tuple(point) for point in points]
        ImageDraw.Draw(picture).line(line, random_colour(rng), width, joint="curve")
    return picture


def polygons(size: int, rng: np.random.Generator) -> Image.Image:
    """A few flat shapes over each other."""
    picture = plain(size, rng)
    for _ in range(rng.integers(1, 6)):
        points = rng.uniform(0, size, (rng.integers(3, 7), 2))
        ImageDraw.Draw(picture).polygon([tuple(point) for point in points], random_colour(rng))
    return picture


def posterised(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Only a few shades per channel left."""
    levels = int(rng.integers(2, 6))
    pixels = np.asarray(picture, np.float32) / 255
    return Image.fromarray((np.round(pixels * levels) / levels * 255).astype(np.uint8))


def blurred(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus, a little or much."""
    return picture.filter(ImageFilter.GaussianBlur(picture.width * rng.uniform(0.01, 0.06)))


def with_hole(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A grey or black hole, as a masked picture has for inpainting."""
    picture = picture.copy()
    size = picture.width
    left, top = (int(edge) for edge in rng.integers(-size // 8, size * 3 // 4, 2))
    width, height = (int(edge) for edge in rng.integers(size // 4, size * 3 // 4, 2))
    pen = ImageDraw.Draw(picture)
    shape = pick((pen.rectangle, pen.ellipse), rng)
    shape((left, top, left + width, top + height), fill=pick(((128, 128, 128), (0, 0, 0)), rng))
    return picture


CHANGES = (posterised, blurred, with_hole)
OTHERS = (scribble, polygons, plain)


def altered(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture changed, or another kind of picture in its place. h w rgb in 0..1."""
    if rng.random() < 0.5:
        other = pick(OTHERS, rng)(len(picture), rng)
        return np.asarray(other, np.float32) / 255
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    return np.asarray(pick(CHANGES, rng)(image, rng), np.float32) / 255


def vae_batch(
    emoji: Emoji, size: int, batch_size: int, seed: int, step: int, split: str = "train"
) -> Batch:
    """A batch of which some pictures are altered; captions, scenes and masks tell of before."""
    composed = batch(emoji, size, batch_size, seed, step, split)
    rng = random_stream(seed, step, split, ALTER)
    images = []
    for image in composed.images:
        if rng.random() < ALTERED:
            picture = rearrange(image, "c h w -> h w c").numpy() / 2 + 0.5
            image = to_tensor([altered(picture.clip(0, 1), rng)])[0]
        images.append(image)
    return replace(composed, images=torch.stack(images))
