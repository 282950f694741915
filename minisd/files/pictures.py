"""Convert pictures, masks, hints and depth maps to numbers that match what people see.

The numbers in a picture file may differ from what people see. A phone's photo may lie on its side
until its EXIF orientation is applied. Pillow's convert() replaces 16-bit greys above 255 with 255.
Transparent places hide colours that nobody should see. So every picture, mask, hint (the picture
that a ControlNet reads) and depth map passes through the functions of this file. Colour profiles
(ICC) are ignored, as in diffusers.
"""

import warnings
from math import inf
from numbers import Integral

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minisd.config import ModelConfig
from minisd.files.picture_files import explain_pillow_errors, turn_upright

# The numbers of three TIFF tags: the bits per value; the photometric interpretation (0 means that
# white is stored as 0); the sample format (1 means unsigned integers)
BITS, FIRST_IS_WHITE, SAMPLE = 258, 262, 339
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")  # Pillow's modes
BLACK_PAINT = 64  # out of 255; paint darker than this may mark the part to keep
FAR_LARGER = 4  # times as many pixels as in training: such pictures may show a thing several times
ROUNDING = 1e-3  # how far the values of a tensor may lie outside their range


# ---- what a picture shows --------------------------------------------------------------------


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture is grey with more than 8 bits. Pillow's convert() spoils such a picture."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def opacity(picture: Image.Image) -> np.ndarray | None:
    """The alpha channel: h w, from 0 (transparent) to 255 (opaque).

    None: the picture is opaque everywhere.
    """
    palette = picture.palette.mode if picture.mode == "P" and picture.palette else ""
    if "transparency" not in picture.info and picture.mode not in WITH_ALPHA and palette != "RGBA":
        return None
    if is_deep(picture):
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], 0, np.uint8(255))
    else:
        alpha = np.asarray(with_alpha(picture).getchannel("A"))
    return None if alpha.min() == 255 else alpha.astype(np.uint8)


def with_alpha(picture: Image.Image) -> Image.Image:
    """Convert a picture to Pillow's mode RGBA. Pillow must first convert mode La to mode LA."""
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def colours(picture: Image.Image, what: str = "picture") -> Image.Image:
    """Turn a picture upright, and convert it to RGB with 8 bits per value.

    what: the name of the picture, for error messages

    Raises ValueError if the picture is transparent in places, or if nothing says which of its
    values is white.
    """
    picture = turn_upright(picture, what)
    with explain_pillow_errors(f"the {what}"):
        transparent, deep = opacity(picture) is not None, is_deep(picture)
        marked = picture.mode in WITH_ALPHA or "transparency" in picture.info  # even if opaque
        if not transparent and not deep:
            return (with_alpha(picture) if marked else picture).convert("RGB")
    if deep and not transparent:
        return eight_bits(picture, what).convert("RGB")
    hidden = "is transparent in places, and would show hidden colours in these places"
    advice = "put it on a background and save it without transparency"
    raise ValueError(f"the {what} {hidden}: {advice}.")


def eight_bits(picture: Image.Image, what: str) -> Image.Image:
    """Convert a grey picture with more than 8 bits per value to 256 shades.

    Raises ValueError if nothing says which value is white.
    """
    values = deep_values(picture)
    low, high = values.min(), values.max()
    # Some versions of Pillow open 16-bit pictures in mode I, which has 32 bits. No version opens
    # pictures of fewer bits in this mode.
    sixteen = picture.mode == "I" and low >= 0 and 32767 < high <= 65535
    if sixteen or picture.mode.startswith("I;16"):
        white = 65535
    elif picture.mode == "F" and low >= 0 and high <= 1:
        white = 1
    else:
        found = f"numbers from {low:g} to {high:g} (Pillow's mode {picture.mode})"
        advice = "save it with 8 or 16 bits, or as floats in 0 … 1"
        raise ValueError(
            f"the {what} holds {found}, and nothing says which number is white: {advice}."
        )
    values /= white
    values *= 255
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def deep_values(picture: Image.Image) -> np.ndarray:
    """The values of a grey picture with more than 8 bits per value: h w.

    Brighter pixels have larger values. In Pillow's 16-bit modes (I;16), white is 65535.
    """
    values, tags = np.asarray(picture), getattr(picture, "tag_v2", {})  # only a TIFF has tags
    if tags.get(BITS) == (32,) and tags.get(SAMPLE, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow reads unsigned values as signed
    with np.errstate(invalid="ignore"):  # the caller refuses NaN
        values = values.astype(np.float64)
    top = max(1, values.max())
    if picture.mode.startswith("I;16"):
        top = 65535
        values *= top / (2 ** tags.get(BITS, (16,))[0] - 1)  # TIFFs may have 12 bits
    if tags.get(FIRST_IS_WHITE) == 0:  # Pillow does not invert the values
        np.subtract(top, values, out=values)
    return values


def mask_shades(mask: Image.Image) -> Image.Image:
    """Turn a mask upright, and convert it to 256 greys. White marks the part to draw again.

    If the mask is transparent in places, the painted (opaque) part is the part to draw again. All
    paint must have the same colour, and this colour must not be black.

    Raises ValueError if the mask is transparent in places, and has no paint, black paint or paint
    of several colours. Nobody can know which part such a mask marks.
    """
    mask = turn_upright(mask, "mask")
    with explain_pillow_errors("the mask"):
        alpha = opacity(mask)
    if alpha is None:
        return eight_bits(mask, "mask") if is_deep(mask) else colours(mask, "mask").convert("L")
    found = "opaque nowhere"
    if alpha.max() == 255:
        with explain_pillow_errors("the mask"):
            brightest, apart = paint(mask, alpha)
        found = "of several colours elsewhere" if apart > 2 else "black elsewhere"
        if apart <= 2 and brightest >= BLACK_PAINT:
            return Image.fromarray(alpha)
    unclear = f"transparent in places and {found}, so it does not show which part to draw again"
    advice = "save it without transparency, and with white where minisd should draw again"
    raise ValueError(f"the mask is {unclear}: {advice}.")


def paint(mask: Image.Image, alpha: np.ndarray) -> tuple[int, float]:
    """Measure the paint of a mask. Returns its brightness, and how much its colours differ.

    The brightness is the largest of r, g and b in the first opaque pixel. To measure how much the
    colours differ, every pixel is compared with this opaque pixel: the largest difference in r, g
    or b is multiplied by the pixel's opacity (0 … 1). The largest product of all pixels is
    returned. Both numbers are in 0 … 255.

    alpha: the opacity, h w, with 255 in at least one pixel
    """
    opaque, brightest, apart = alpha.argmax(), 0, 0
    layer = with_alpha(mask)
    for channel in "RGB":
        shades = np.asarray(layer.getchannel(channel)).astype(np.int16)
        one = int(shades.flat[opaque])
        visible = np.abs(shades - one).astype(np.uint16) * alpha
        brightest, apart = max(brightest, one), max(apart, int(visible.max()))
    return brightest, apart / 255


def depth_values(depth: Image.Image) -> Tensor:
    """Turn a depth map upright. Returns its values: 1 1 h w, in any range. Large means near.

    Raises ValueError if the depth map is not opaque everywhere.
    """
    depth = turn_upright(depth, "depth")
    with explain_pillow_errors("the depth"):
        deep = is_deep(depth) and opacity(depth) is None
    values = deep_values(depth) if deep else np.asarray(colours(depth, "depth").convert("F"))
    return rearrange(torch.from_numpy(values.astype(np.float32)), "h w -> 1 1 h w")


# ---- tensors ---------------------------------------------------------------------------------


def check_tensor(
    x: Tensor, what: str, channels: int, low: float = -inf, high: float = inf, give: str = ""
) -> None:
    """Raise ValueError if x is not b channels h w, or if a number is not finite or out of range.

    low, high: the smallest and the largest allowed number
    what: the name of the tensor, for error messages
    give: what the error message asks for. "": a PIL image or a correct tensor
    """
    in_range = f" in [{low}, {high}]" if low > -inf else ""
    give = give or f"a PIL image, or a tensor b {channels} h w{in_range}"
    if not isinstance(x, Tensor):
        found = f"the {what} is of the type {type(x).__name__}"
    elif x.ndim != 4 or x.shape[1] != channels or x.numel() == 0:
        found = f"the {what} has shape {tuple(x.shape)}"
    elif in_range and not x.is_floating_point():
        found = f"the {what} holds whole numbers ({x.dtype})"
        give = f"{'x / 127.5 - 1' if low < 0 else 'x / 255'} if they go up to 255"
    elif not x.isfinite().all():
        found = f"the {what} holds numbers that are not finite"
    elif x.min() < low - ROUNDING or x.max() > high + ROUNDING:
        found = f"the values of the {what} go from {x.min():g} to {x.max():g}"
    else:
        return
    raise ValueError(f"{found}: give {give}.")


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert a tensor to PIL images: clip to [-1, 1], then round to the nearest of 256 shades.

    images: b 3 h w

    Raises ValueError if a number is not finite.
    """
    if not images.isfinite().all():
        why = "Half precision overflowed or the weights are broken"
        raise ValueError(
            f"the picture holds NaN or infinity. {why}: load with dtype=torch.float32."
        )
    shades = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = rearrange(shades, "b c h w -> b h w c").cpu().numpy()
    return [Image.fromarray(row) for row in rows]


def from_pil(image: Image.Image, what: str = "picture") -> Tensor:
    """Convert a PIL image to the tensor that the VAE reads: upright, 1 3 h w in [-1, 1].

    what: the name of the picture, for error messages

    Raises ValueError if the picture is transparent in places, or if nothing says which of its
    values is white.
    """
    shades = torch.from_numpy(np.array(colours(image, what)))
    return rearrange(shades, "h w c -> 1 c h w") / 127.5 - 1


def check_size(width: int, height: int, config: ModelConfig) -> None:
    """Raise ValueError if the model cannot draw this size. The message states the nearest sizes.

    Warns if the picture has at least FAR_LARGER times as many pixels as the model's training
    pictures.
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
        trained = f"the {config.size} x {config.size} pictures that {config.name} was trained on"
        size = f"a picture of {width} x {height} pixels is {times:.0f} times as large as {trained}"
        effect = "It takes long to draw, and may show things several times"
        warnings.warn(f"{size}. {effect}.", stacklevel=1)


def size_step(config: ModelConfig) -> int:
    """The width and height of a picture must be multiples of this number of pixels.

    The number is at least 8, because diffusers requires multiples of 8 for every model.
    """
    return max(8, config.vae.factor)
