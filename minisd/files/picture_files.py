"""Open pictures from strangers safely, turn them upright, and explain errors in a sentence.

A picture file may be hostile. So Pillow may open only six kinds of files. The number of times that
Pillow may read from a file is limited, too. Every error that Pillow raises becomes one sentence.
"""

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # the number of this tag in EXIF data and in a TIFF
TILE = (322, 323)  # TIFF tags: width and height of a tile (a tile may be larger than the picture)
ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")  # formats that can hold several pictures

# All other formats are refused. For them, Pillow runs programs (Ghostscript for EPS) or code that
# few people test.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 8192 * 6144  # as in the largest phone pictures; 200 MB in memory
MOST_BYTES = 8 * MOST_PIXELS  # MOST_PIXELS with alpha and 16 bits per value, uncompressed
HEADER_READS, HEADER_BYTES = 40_000, 8 * 10**6  # normal files need 1,000 reads and 1 MB
TIFF_BYTES = 3 * 10**6  # Pillow needs 300 bytes of memory for one byte of a TIFF's strip list
PIXEL_READS = 400_000  # a PNG of MOST_BYTES in chunks of 8 KB needs 200,000 reads
MOST_STRIPS = 100_000  # in a TIFF; a normal strip has several rows and 8 KB
MOST_EXIF = 10**6  # bytes; cameras write at most 64 KB
TOO_LARGE = "is too large for a picture (the limits are 50 megapixels and the free memory)"
PICTURE_KINDS = "it is damaged, has too many parts, or is not a PNG, JPEG, WebP, GIF, BMP or TIFF"
UNREADABLE = f"cannot be read as a picture: {PICTURE_KINDS}"
# A JPEG consists of scans, usually ten. Pillow visits every pixel once per scan. Every scan begins
# with a header that lists 1 to 4 components.
SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\x01-\x04]")
MOST_VISITS = 20 * MOST_PIXELS  # pixels times scans

# The chunks of a PNG that hold texts or a colour profile. minisd needs only texts with EXIF data.
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTED = (b"XML:com.adobe.xmp", b"Raw profile type exif")

PILLOW = threading.RLock()  # because all threads share Python's list of warning filters
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow's errors are printed


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture file and turn the picture upright.

    If the file is an animation, only the first frame is used.

    Raises ValueError if the file does not exist, is too large or cannot be read.
    """
    content = read_file(Path(path))
    with explain_pillow_errors(str(path)):
        try:
            picture, frames = first_frame(content)
        except Image.DecompressionBombError:
            raise
        except Exception:  # perhaps a text in a PNG is damaged, or too long (a stored workflow)
            shortened = without_texts(content)
            if shortened is content:
                raise
            picture, frames = first_frame(shortened)
    if frames != 1:
        warnings.warn(f"{path} holds {frames} pictures: minisd uses the first.", stacklevel=2)
    return picture


def read_file(path: Path) -> bytes:
    """Read all bytes of a file.

    Raises ValueError if the file does not exist, cannot be read or is too large for a picture.
    """
    try:
        size = path.stat().st_size
        if path.is_file() and size <= MOST_BYTES:  # a pipe or device might never end
            with open(path, "rb") as file:
                return file.read(size)
        regular = f"not a regular file of at most {MOST_BYTES / 1e6:.0f} MB"
        why = f"it is {'a folder' if path.is_dir() else regular}"
    except (OSError, ValueError) as error:  # ValueError if the name is impossible
        absent = isinstance(error, FileNotFoundError)
        why = "there is no such file" if absent else "the system does not allow reading it"
    raise ValueError(f"{path} cannot be read as a picture: {why}.")


@contextmanager
def explain_pillow_errors(what: str) -> Iterator[None]:
    """Turn every error of Pillow in a `with` block into one ValueError, and hide Pillow's warnings.

    what: the name of the picture, for error messages
    """
    with PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (Image.DecompressionBombError, MemoryError) as error:
            raise ValueError(f"{what} {TOO_LARGE}: make it smaller.") from error
        except Exception as error:  # on a damaged file, Pillow raises errors of every type
            raise ValueError(f"{what} {UNREADABLE}. Save it again as PNG or JPEG.") from error


class LimitedReader(io.BytesIO):
    """A file in memory that allows only a limited number of reads.

    A hostile file may have an endless number of small parts.
    """

    def __init__(self, content: bytes):
        """Set the limits for the header, which is the part of the file before the pixels."""
        super().__init__(content)
        self.reads = HEADER_READS
        self.total = TIFF_BYTES if content.startswith((b"II", b"MM")) else HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.reads -= 1
        self.total -= 0 if size in (-1, None) else len(part)  # one read of everything is safe
        if self.reads < 0 or self.total < 0:
            raise ValueError("this file has more parts than a picture needs")
        return part


def first_frame(content: bytes) -> tuple[Image.Image, int | str]:
    """Read the first picture of a file, and turn it upright.

    Returns the picture, and how many pictures the file holds. Pillow's errors are passed on.
    """
    file = LimitedReader(content)
    picture = Image.open(file, formats=FORMATS)
    pixels = picture.width * picture.height
    tile = [getattr(picture, "tag_v2", {}).get(tag, 1) for tag in TILE]
    if pixels > MOST_PIXELS or np.prod(tile, dtype=float) > MOST_PIXELS:
        raise Image.DecompressionBombError
    visits = sum(pixels for _ in SCAN.finditer(content))
    if visits > MOST_VISITS or len(picture.tile) > MOST_STRIPS:
        raise ValueError("this file has more scans or strips than a picture needs")
    file.reads, file.total = PIXEL_READS, len(content) + HEADER_BYTES
    frames = frames_in(content) if picture.format in ANIMATED else 1
    picture = apply_exif_orientation(picture)
    # Pillow's WebP decoder holds two more copies of the pixels. Copying the picture frees them.
    return picture.copy() if picture.format == "WEBP" else picture, frames


def frames_in(content: bytes) -> int | str:
    """How many pictures a file holds. "several": Pillow cannot count them."""
    picture = Image.open(LimitedReader(content), formats=FORMATS)
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:  # Pillow raises errors of every type. The first picture is still readable
        return "several"


def without_texts(png: bytes) -> bytes:
    """Remove the texts and the colour profile from a PNG file. EXIF data are kept.

    The pixels do not depend on the texts and the colour profile. A file that is not a PNG is
    returned unchanged.
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


def turn_upright(picture: Image.Image, what: str = "picture") -> Image.Image:
    """Turn a picture upright, according to the orientation in its EXIF data.

    A picture without an orientation is returned unchanged.

    what: the name of the picture, for error messages

    Raises ValueError if the pixels cannot be read. (When Pillow opens a file, it does not read the
    pixels. They may be read only in this function.)
    """
    with explain_pillow_errors(f"the {what}"):
        return apply_exif_orientation(picture)


def apply_exif_orientation(picture: Image.Image) -> Image.Image:
    """Turn a picture upright, as turn_upright() does. But Pillow's errors are passed on."""
    with silence_error_stream() if picture.format == "TIFF" else nullcontext():
        picture.load()
    if not picture.width * picture.height or len(picture.info.get("exif", b"")) > MOST_EXIF:
        raise ValueError("no pixels, or far too large EXIF data")
    turned = picture.getexif().get(ORIENTATION) in range(2, 9)
    return ImageOps.exif_transpose(picture) if turned else picture


@contextmanager
def silence_error_stream() -> Iterator[None]:
    """Silence the error stream (stderr) of the process in a `with` block.

    Pillow reads a TIFF with libtiff. This C library prints warnings to stderr.
    """
    try:
        original, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # the program has no error stream
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(nowhere)
