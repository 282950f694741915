"""Pictures as people have them, read for what they show: upright, in known shades, opaque.

Pillow opens many kinds of files, and some of them mean more than their numbers: a phone's photo
lies on its side until its EXIF orientation is obeyed, a 16-bit grey is cut off at 255 when it is
converted carelessly, and a transparent place hides some colour. Every picture, mask, hint and
depth passes through here. Colour profiles (ICC) are ignored, as in diffusers.
"""

import io
import warnings
from math import inf
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

ORIENTATION = 0x0112  # EXIF's tag; TIFF's is the same number
BITS, FIRST_IS_WHITE, SAMPLE = 258, 262, 339  # TIFF's: bits, photometric interpretation, sign
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")  # formats whose further frames are other pictures
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
BLACK_PAINT = 64  # a brush darker than this may be the part to keep
ROUNDING = 1e-3  # how far a tensor may lie outside its range

# Texts and the colour profile of a PNG: nothing that we read, except where they hold the EXIF.
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTED = (b"XML:com.adobe.xmp", b"Raw profile type exif")


# ---- files -----------------------------------------------------------------------------------


def open_picture(path: str | Path) -> Image.Image:
    """The picture of a file, upright; the first one where the file holds an animation or pages.

    ValueError: there is none, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise ValueError(f"{path} cannot be read as a picture: {what}.")
    content = path.read_bytes()
    try:
        try:
            picture, frames = first_frame(content)
        except ValueError:  # Pillow's word for long texts, such as another program's workflow
            picture, frames = first_frame(without_texts(content))
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ValueError(f"{path} is too large a picture ({error}): make it smaller.") from error
    except Exception as error:  # Pillow's readers raise every kind on a damaged file
        unknown = isinstance(error, Image.UnidentifiedImageError)
        why = "it is of no kind that Pillow knows, or is damaged" if unknown else error
        refusal = f"{path} cannot be read as a picture: {why}. Save it as PNG or JPEG."
        raise ValueError(refusal) from error
    if frames > 1:
        warnings.warn(f"{path} holds {frames} pictures: the first is used.", stacklevel=2)
    return picture


def first_frame(content: bytes) -> tuple[Image.Image, int]:
    """The picture, upright, and how many there are."""
    picture = Image.open(io.BytesIO(content))
    frames = getattr(picture, "n_frames", 1) if picture.format in ANIMATED else 1
    return upright(picture), frames


def without_texts(png: bytes) -> bytes:
    """The same PNG without texts and colour profile, which no pixel needs, but with orientation.

    Another kind of file comes back as it is.
    """
    if not png.startswith(PNG):
        return png
    at, kept = len(PNG), [PNG]
    while at + 8 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        kind, chunk = png[at + 4 : at + 8], png[at : at + 12 + length]
        if kind not in TEXTS or chunk[8:].startswith(ORIENTED):
            kept.append(chunk)
        at += len(chunk)
    return b"".join(kept)


# ---- what a picture shows --------------------------------------------------------------------


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; itself, where it says nothing."""
    picture.load()
    turned = picture.getexif().get(ORIENTATION) in range(2, 9)
    return ImageOps.exif_transpose(picture) if turned else picture


def is_deep(picture: Image.Image) -> bool:
    """Whether it is grey with more than 8 bits, of which Pillow's convert() makes a wrong one."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def opacity(picture: Image.Image) -> np.ndarray | None:
    """h w, from 0 (transparent) to 255 (opaque). None: opaque everywhere."""
    palette = picture.palette.mode if picture.mode == "P" and picture.palette else ""
    if "transparency" not in picture.info and picture.mode not in WITH_ALPHA and palette != "RGBA":
        return None
    if is_deep(picture):
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], 0, 255)
    else:
        alpha = np.asarray(with_alpha(picture))[..., 3]
    return None if alpha.min() == 255 else alpha.astype(np.uint8)


def with_alpha(picture: Image.Image) -> Image.Image:
    """In mode RGBA; Pillow knows the way from La by LA alone."""
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def colours(picture: Image.Image, what: str = "picture") -> Image.Image:
    """What an RGB picture of 8 bits shows of it, upright.

    ValueError: it is transparent in places, or nobody can say which of its numbers is white.
    """
    picture = upright(picture)
    if opacity(picture) is not None:
        hidden = "is transparent in places, and the colours hidden there are not meant to be seen"
        way = "lay it on a background and save it without transparency"
        raise ValueError(f"the {what} {hidden}: {way}.")
    if is_deep(picture):
        return eight_bits(picture, what).convert("RGB")
    marked = picture.mode in WITH_ALPHA or "transparency" in picture.info  # with no use for it
    try:
        return (with_alpha(picture) if marked else picture).convert("RGB")
    except (ValueError, OSError) as error:
        kind = f"of the kind {picture.mode} ({error})"
        raise ValueError(f"the {what} is {kind}: save it as RGB.") from error


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
    return Image.fromarray(np.rint(values / white * 255).astype(np.uint8))


def deep_values(picture: Image.Image) -> np.ndarray:
    """The numbers of a grey of more than 8 bits, h w: bright is large, 16 bits use all of them."""
    values, tags = np.asarray(picture), getattr(picture, "tag_v2", {})  # what a TIFF says of itself
    if tags.get(BITS) == (32,) and tags.get(SAMPLE, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow knows only signed ones
    values = values.astype(np.float64)
    top = max(1, values.max())
    if picture.mode.startswith("I;16"):
        top = 65535
        values = values * (top / (2 ** tags.get(BITS, (16,))[0] - 1))  # some have 12 bits
    return top - values if tags.get(FIRST_IS_WHITE) == 0 else values  # Pillow leaves them as stored


def mask_shades(mask: Image.Image) -> Image.Image:
    """The mask in 256 shades of grey, upright: white is drawn again.

    Of a mask that is transparent in places the paint counts: white, or one other colour that is
    not black. ValueError: it is transparent and has other colours, so nobody can say which part
    is meant, the visible or the erased one.
    """
    mask = upright(mask)
    alpha = opacity(mask)
    if alpha is None:
        return eight_bits(mask, "mask") if is_deep(mask) else colours(mask, "mask").convert("L")
    what = "opaque nowhere"
    if alpha.max() == 255:
        shades = np.asarray(with_alpha(mask))[..., :3].astype(float)
        paint = shades[alpha == 255][0]
        apart = np.abs(shades - paint).max(axis=2) * alpha / 255  # as far as it is visible
        what = "of several colours elsewhere" if apart.max() > 2 else "black elsewhere"
        if apart.max() <= 2 and paint.max() >= BLACK_PAINT:
            return Image.fromarray(alpha)
    unclear = f"transparent in places and {what}, so it does not say which part is meant"
    way = "save it without transparency, white where the picture is to be drawn again"
    raise ValueError(f"the mask is {unclear}: {way}.")


def depth_values(depth: Image.Image) -> Tensor:
    """The depth as it is stored, in any range: 1 1 h w, large (bright) = near, upright."""
    depth = upright(depth)
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
