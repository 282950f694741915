"""Pictures as people have them, read for what they show: upright, in known shades, opaque.

Pillow opens many kinds of files, and some of them mean more than their numbers: a phone's photo
lies on its side until its EXIF orientation is obeyed, a 16-bit grey is cut off at 255 when it is
converted carelessly, and a transparent place hides some colour. Every picture, mask, hint and
depth passes through here. Colour profiles (ICC) are ignored, as in diffusers.

A picture is a file from a stranger: Pillow opens six kinds alone, reads no more often than a sane
file needs, and whatever it raises becomes one sentence.
"""

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import inf
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from minisd.config import ModelConfig

ORIENTATION = 0x0112  # EXIF's tag; TIFF's is the same number
BITS, FIRST_IS_WHITE, SAMPLE = 258, 262, 339  # TIFF's: bits, photometric interpretation, sign
TILE = (322, 323)  # a TIFF's: width and height of a tile, which may be larger than the picture
ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")  # formats whose further frames are other pictures
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
BLACK_PAINT = 64  # a brush darker than this may be the part to keep
FAR_LARGER = 4  # times the pixels; from there on a network draws its subject several times
ROUNDING = 1e-3  # how far a tensor may lie outside its range

# Of other kinds Pillow runs programs (EPS starts Ghostscript) or readers that few people test.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 8192 * 6144  # what the largest phone cameras take; 200 MB once it is open
MOST_BYTES = 8 * MOST_PIXELS  # such a picture with alpha and 16 bits each, not compressed
HEADER_READS, HEADER_BYTES = 40_000, 8 * 10**6  # sane files take 1,000 reads and 1 MB
TIFF_BYTES = 3 * 10**6  # of one byte in a TIFF's list of strips Pillow makes 300
PIXEL_READS = 400_000  # a PNG of MOST_BYTES in chunks of 8 KB takes 200,000
MOST_STRIPS = 100_000  # of a TIFF; usual ones are of several rows and 8 KB
MOST_EXIF = 10**6  # bytes; a camera writes 64 KB at most
TOO_LARGE = "is too large a picture (50 megapixels and the free memory are the limits)"
PICTURE_KINDS = "it is no PNG, JPEG, WebP, GIF, BMP or TIFF, is damaged, or has too many parts"
UNREADABLE = f"cannot be read as a picture: {PICTURE_KINDS}"
# Each scan of a JPEG visits all its pixels; ten are usual. A scan's header names 1 to 4 components.
SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\x01-\x04]")
MOST_VISITS = 20 * MOST_PIXELS

# Texts and the colour profile of a PNG: nothing that we read, except where they hold the EXIF.
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTED = (b"XML:com.adobe.xmp", b"Raw profile type exif")

PILLOW = threading.RLock()  # Python's list of filters for warnings is one for all threads
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else errors go to the screen


# ---- files -----------------------------------------------------------------------------------


def open_picture(path: str | Path) -> Image.Image:
    """The picture of a file, upright; the first one where the file holds an animation or pages.

    ValueError: there is none, it is too large, or it cannot be read.
    """
    content = read_file(Path(path))
    with in_our_words(str(path)):
        try:
            picture, frames = first_frame(content)
        except Image.DecompressionBombError:
            raise
        except Exception:  # of long texts, such as another program's workflow, or damaged ones
            shorter = without_texts(content)
            if shorter is content:
                raise
            picture, frames = first_frame(shorter)
    if frames != 1:
        warnings.warn(f"{path} holds {frames} pictures: the first is used.", stacklevel=2)
    return picture


def read_file(path: Path) -> bytes:
    """All bytes of a file that may be a picture. ValueError: there is none, or it is too large."""
    try:
        size = path.stat().st_size
        if path.is_file() and size <= MOST_BYTES:  # a pipe would wait for ever, a device never end
            with open(path, "rb") as file:
                return file.read(size)
        regular = f"no regular file of at most {MOST_BYTES / 1e6:.0f} MB"
        why = f"it is {'a folder' if path.is_dir() else regular}"
    except (OSError, ValueError) as error:  # ValueError: a name that no system allows
        absent = isinstance(error, FileNotFoundError)
        why = "there is no such file" if absent else "the system does not let it be read"
    raise ValueError(f"{path} cannot be read as a picture: {why}.")


@contextmanager
def in_our_words(what: str) -> Iterator[None]:
    """Whatever Pillow raises on a picture becomes one ValueError; its own warnings are dropped.

    what: the picture's name in the sentence
    """
    with PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (Image.DecompressionBombError, MemoryError) as error:
            raise ValueError(f"{what} {TOO_LARGE}: make it smaller.") from error
        except Exception as error:  # Pillow's readers raise every kind on a damaged file
            raise ValueError(f"{what} {UNREADABLE}. Save it again as PNG or JPEG.") from error


class Metered(io.BytesIO):
    """A file's bytes, to be read so often and no more: a hostile file has no end of small parts."""

    def __init__(self, content: bytes):
        """Enough for the header: what comes before the pixels."""
        super().__init__(content)
        self.reads = HEADER_READS
        self.total = TIFF_BYTES if content.startswith((b"II", b"MM")) else HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.reads -= 1
        self.total -= 0 if size in (-1, None) else len(part)  # all at once is no loop
        if self.reads < 0 or self.total < 0:
            raise ValueError("there is more in this file than a picture needs")
        return part


def first_frame(content: bytes) -> tuple[Image.Image, int | str]:
    """The picture, upright, and how many there are. Raises whatever Pillow does."""
    file = Metered(content)
    picture = Image.open(file, formats=FORMATS)
    pixels = picture.width * picture.height
    tile = [getattr(picture, "tag_v2", {}).get(tag, 1) for tag in TILE]
    if pixels > MOST_PIXELS or np.prod(tile, dtype=float) > MOST_PIXELS:
        raise Image.DecompressionBombError
    visits = sum(pixels for _ in SCAN.finditer(content))
    if visits > MOST_VISITS or len(picture.tile) > MOST_STRIPS:
        raise ValueError("there are more scans or strips in this file than a picture needs")
    file.reads, file.total = PIXEL_READS, len(content) + HEADER_BYTES
    frames = frames_in(content) if picture.format in ANIMATED else 1
    picture = turn(picture)
    # a WebP's decoder holds two more copies of the pixels
    return picture.copy() if picture.format == "WEBP" else picture, frames


def frames_in(content: bytes) -> int | str:
    """How many pictures a file holds; "several" where they are too many to count, or damaged."""
    picture = Image.open(Metered(content), formats=FORMATS)
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:  # as above; the first picture is whole
        return "several"


def without_texts(png: bytes) -> bytes:
    """The same PNG without texts and colour profile, which no pixel needs, but with orientation.

    Another kind of file comes back as it is.
    """
    if not png.startswith(PNG):
        return png
    at, chunks, kept = len(PNG), 0, [PNG]
    while at + 8 <= len(png) and (chunks := chunks + 1) < PIXEL_READS:
        length = int.from_bytes(png[at : at + 4], "big")
        kind, chunk = png[at + 4 : at + 8], png[at : at + 12 + length]
        if kind not in TEXTS or chunk[8:40].startswith(ORIENTED):
            kept.append(chunk)
        at += len(chunk)
    return b"".join(kept)


# ---- what a picture shows --------------------------------------------------------------------


def upright(picture: Image.Image, what: str = "picture") -> Image.Image:
    """The picture turned as its EXIF orientation says; itself, where it says nothing.

    ValueError: its pixels, which Pillow may read only now, cannot be read.
    """
    with in_our_words(f"the {what}"):
        return turn(picture)


def turn(picture: Image.Image) -> Image.Image:
    """As upright(). Raises whatever Pillow does."""
    with silence() if picture.format == "TIFF" else nullcontext():
        picture.load()
    if not picture.width * picture.height or len(picture.info.get("exif", b"")) > MOST_EXIF:
        raise ValueError("no pixels, or far too large EXIF data")
    turned = picture.getexif().get(ORIENTATION) in range(2, 9)
    return ImageOps.exif_transpose(picture) if turned else picture


@contextmanager
def silence() -> Iterator[None]:
    """libtiff writes what it thinks of a file past Python, to the process's own error stream."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # a program without an error stream
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def is_deep(picture: Image.Image) -> bool:
    """Whether it is grey with more than 8 bits, of which Pillow's convert() makes a wrong one."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def opacity(picture: Image.Image) -> np.ndarray | None:
    """h w, from 0 (transparent) to 255 (opaque). None: opaque everywhere."""
    palette = picture.palette.mode if picture.mode == "P" and picture.palette else ""
    if "transparency" not in picture.info and picture.mode not in WITH_ALPHA and palette != "RGBA":
        return None
    if is_deep(picture):
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], 0, np.uint8(255))
    else:
        alpha = np.asarray(with_alpha(picture).getchannel("A"))
    return None if alpha.min() == 255 else alpha.astype(np.uint8)


def with_alpha(picture: Image.Image) -> Image.Image:
    """In mode RGBA; Pillow knows the way from La by LA alone."""
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def colours(picture: Image.Image, what: str = "picture") -> Image.Image:
    """What an RGB picture of 8 bits shows of it, upright.

    ValueError: it is transparent in places, or nobody can say which of its numbers is white.
    """
    picture = upright(picture, what)
    with in_our_words(f"the {what}"):
        transparent, deep = opacity(picture) is not None, is_deep(picture)
        marked = picture.mode in WITH_ALPHA or "transparency" in picture.info  # with no use for it
        if not transparent and not deep:
            return (with_alpha(picture) if marked else picture).convert("RGB")
    if deep and not transparent:
        return eight_bits(picture, what).convert("RGB")
    hidden = "is transparent in places, and the colours hidden there are not meant to be seen"
    way = "lay it on a background and save it without transparency"
    raise ValueError(f"the {what} {hidden}: {way}.")


def eight_bits(picture: Image.Image, what: str) -> Image.Image:
    """A deep grey in 256 shades, by the range of its numbers. ValueError: that is unknown."""
    values = deep_values(picture)
    low, high = values.min(), values.max()
    # Some versions of Pillow open 16 bits, no fewer, in the mode I, which has 32.
    sixteen = picture.mode == "I" and low >= 0 and 32767 < high <= 65535
    if sixteen or picture.mode.startswith("I;16"):
        white = 65535
    elif picture.mode == "F" and low >= 0 and high <= 1:
        white = 1
    else:
        found = f"numbers from {low:g} to {high:g} (Pillow's mode {picture.mode})"
        way = "save it with 8 or 16 bits, or as floats in 0 … 1"
        raise ValueError(f"the {what} holds {found}, and nothing says which is white: {way}.")
    values /= white
    values *= 255
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def deep_values(picture: Image.Image) -> np.ndarray:
    """The numbers of a grey of more than 8 bits, h w: bright is large, 16 bits use all of them."""
    values, tags = np.asarray(picture), getattr(picture, "tag_v2", {})  # what a TIFF says of itself
    if tags.get(BITS) == (32,) and tags.get(SAMPLE, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow knows only signed ones
    with np.errstate(invalid="ignore"):  # NaN, which whoever asks refuses
        values = values.astype(np.float64)
    top = max(1, values.max())
    if picture.mode.startswith("I;16"):
        top = 65535
        values *= top / (2 ** tags.get(BITS, (16,))[0] - 1)  # some have 12 bits
    if tags.get(FIRST_IS_WHITE) == 0:  # Pillow leaves them as stored
        np.subtract(top, values, out=values)
    return values


def mask_shades(mask: Image.Image) -> Image.Image:
    """The mask in 256 shades of grey, upright: white is drawn again.

    Of a mask that is transparent in places the paint counts: white, or one other colour that is
    not black. ValueError: it is transparent and has other colours, so nobody can say which part
    is meant, the visible or the erased one.
    """
    mask = upright(mask, "mask")
    with in_our_words("the mask"):
        alpha = opacity(mask)
    if alpha is None:
        return eight_bits(mask, "mask") if is_deep(mask) else colours(mask, "mask").convert("L")
    what = "opaque nowhere"
    if alpha.max() == 255:
        with in_our_words("the mask"):
            brightest, apart = paint(mask, alpha)
        what = "of several colours elsewhere" if apart > 2 else "black elsewhere"
        if apart <= 2 and brightest >= BLACK_PAINT:
            return Image.fromarray(alpha)
    unclear = f"transparent in places and {what}, so it does not say which part is meant"
    way = "save it without transparency, white where the picture is to be drawn again"
    raise ValueError(f"the mask is {unclear}: {way}.")


def paint(mask: Image.Image, alpha: np.ndarray) -> tuple[int, float]:
    """The brightest channel of the first opaque pixel, and how far the others visibly differ.

    alpha: h w, 255 at one pixel at least
    """
    opaque, brightest, apart = alpha.argmax(), 0, 0
    layer = with_alpha(mask)
    for channel in "RGB":
        shades = np.asarray(layer.getchannel(channel)).astype(np.int16)
        one = int(shades.flat[opaque])
        seen = np.abs(shades - one).astype(np.uint16) * alpha  # as far as it is visible
        brightest, apart = max(brightest, one), max(apart, int(seen.max()))
    return brightest, apart / 255


def depth_values(depth: Image.Image) -> Tensor:
    """The depth as it is stored, in any range: 1 1 h w, large (bright) = near, upright."""
    depth = upright(depth, "depth")
    with in_our_words("the depth"):
        deep = is_deep(depth) and opacity(depth) is None
    values = deep_values(depth) if deep else np.asarray(colours(depth, "depth").convert("F"))
    return rearrange(torch.from_numpy(values.astype(np.float32)), "h w -> 1 1 h w")


# ---- tensors ---------------------------------------------------------------------------------


def check_tensor(
    x: Tensor, what: str, channels: int, low: float = -inf, high: float = inf, give: str = ""
) -> None:
    """Raise ValueError unless x is b channels h w, of finite numbers in low … high.

    give: what a message asks for. "": a picture or such a tensor
    """
    in_range = f" in [{low}, {high}]" if low > -inf else ""
    give = give or f"a PIL image, or b {channels} h w{in_range}"
    if not isinstance(x, Tensor):
        found = f"the {what} is of the type {type(x).__name__}"
    elif x.ndim != 4 or x.shape[1] != channels or x.numel() == 0:
        found = f"the {what} has shape {tuple(x.shape)}"
    elif in_range and not x.is_floating_point():
        found = f"the {what} holds whole numbers ({x.dtype})"
        give = f"{'x / 127.5 - 1' if low < 0 else 'x / 255'}, if they go up to 255"
    elif not x.isfinite().all():
        found = f"the {what} holds numbers that are not finite"
    elif x.min() < low - ROUNDING or x.max() > high + ROUNDING:
        found = f"the values of the {what} go from {x.min():g} to {x.max():g}"
    else:
        return
    raise ValueError(f"{found}: give {give}.")


def to_pil(images: Tensor) -> list[Image.Image]:
    """images: b 3 h w, clipped to [-1, 1] and rounded to the nearest of 256 shades.

    Raises ValueError if a number is not finite.
    """
    if not images.isfinite().all():
        why = "Half precision overflowed or the weights are broken"
        raise ValueError(f"the picture is not finite. {why}: load with dtype=torch.float32.")
    shades = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = rearrange(shades, "b c h w -> b h w c").cpu().numpy()
    return [Image.fromarray(row) for row in rows]


def from_pil(image: Image.Image, what: str = "picture") -> Tensor:
    """A picture as the VAE reads it, upright: 1 3 h w in [-1, 1].

    what: its name in an error

    Raises ValueError if the picture is transparent in places, or if its range is unknown.
    """
    shades = torch.from_numpy(np.array(colours(image, what)))
    return rearrange(shades, "h w c -> 1 c h w") / 127.5 - 1


def check_size(width: int, height: int, config: ModelConfig) -> None:
    """Raise ValueError, with the nearest possible sizes, if no latent has exactly this size.

    Warns if the picture has FAR_LARGER times the pixels that the model was trained on, or more.
    """
    multiple = size_step(config)
    nearest = []
    for side, length in (("width", width), ("height", height)):
        if not isinstance(length, Integral) or length < multiple or length % multiple:
            below = int(max(0, length) // multiple * multiple)
            fits = [str(near) for near in (below, below + multiple) if near > 0]
            nearest.append(f"{side} {' or '.join(fits)}")
    if nearest:
        size = f"a picture of {width} x {height} pixels does not fit {config.name}"
        rule = f"width and height must be multiples of {multiple}"
        raise ValueError(f"{size}: {rule}. The nearest that fit: {', '.join(nearest)}.")
    times = width * height / config.size**2
    if times >= FAR_LARGER:
        usual = f"{times:.0f} times the {config.size} x {config.size} that {config.name} learned"
        effect = "It takes long, and may show things several times"
        warnings.warn(f"a picture of {width} x {height} pixels is {usual}. {effect}.", stacklevel=1)


def size_step(config: ModelConfig) -> int:
    """The number of pixels that divides width and height: 8, as in diffusers for every model."""
    return max(8, config.vae.factor)
