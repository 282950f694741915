"""Pictures as people have them: each must show what the array shows that was written to its file.

The right values are that array, Pillow's ImageOps.exif_transpose, or what diffusers' load_image and
VaeImageProcessor make of the same file.
"""

import contextlib
import io
import logging
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image, ImageOps, PngImagePlugin

from minisd.adapters.controlnet import ControlNet, control
from minisd.checkpoints.controlnet_settings import HintSettings
from minisd.cli import main
from minisd.cli.picture_files import is_picture, open_input
from minisd.cli.picture_settings import describe_picture, read_settings
from minisd.files.pictures import colours, depth_values, from_pil, mask_shades
from minisd.pipeline import StableDiffusion, check_seeds, make_generators
from minisd.tasks.canny import canny
from minisd.tasks.depth2img import depth2img, depth2img_steps, depth_channel
from minisd.tasks.img2img import img2img, img2img_steps
from minisd.tasks.inpaint import inpaint, inpaint_steps, mask_tensor
from tests.helpers.pipeline_pairs import NO_FILTER, both_pipelines, last
from tests.helpers.tiny_models import V1, V2, with_channels

HALF_A_SHADE = 0.5 / 255 + 1e-6
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (24, 40, 3), np.uint8)
GREY = rng.integers(0, 256, (24, 40), np.uint8)
DEEP = np.linspace(0, 65535, 24 * 40).round().astype(np.uint16).reshape(24, 40)


def saved(folder, picture, name, **options):
    picture.save(folder / name, **options)
    return folder / name


def shown(picture):
    """b 3 h w in [-1, 1] as h w 3 in 0 … 255."""
    return ((from_pil(picture)[0] + 1) * 127.5).permute(1, 2, 0).round().numpy()


def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(array, bits, kind, *before, after=()):
    """A PNG of h w or h w c, written by hand: Pillow cannot write all that it reads."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    size = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", size), *before, chunk(b"IDAT", zlib.compress(rows)), *after]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(array, bits, white, sample=1):
    """A grey little-endian TIFF by hand. white: 1 where the largest number is, 0 the smallest."""
    height, width = array.shape
    if bits == 12:  # two numbers in three bytes
        pairs = array.reshape(-1, 2).astype(int)
        packed = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
        data = np.stack(packed, 1).astype(np.uint8).tobytes()
    else:
        data = array.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


# ---- which way up ----------------------------------------------------------------------------


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp", "a.jpg"])
def test_every_orientation_of_every_format_is_obeyed(tmp_path, name, orientation):
    options = {"lossless": True} if name == "a.webp" else {}
    options = {"quality": 100, "subsampling": 0} if name == "a.jpg" else options
    path = saved(tmp_path, Image.fromarray(RGB), name, exif=exif(orientation), **options)
    with Image.open(path) as picture:
        right = np.asarray(ImageOps.exif_transpose(picture))
    assert (right.shape[:2] == (24, 40)) == (orientation < 5)
    assert np.array_equal(shown(open_input(path)), right)
    assert np.array_equal(shown(Image.open(path)), right)  # opened by the caller
    assert np.array_equal(np.asarray(load_image(str(path))), right)


def test_a_picture_is_turned_once(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.png", exif=exif(6))
    once = open_input(path)
    assert np.array_equal(np.asarray(colours(once)), np.asarray(once))
    assert np.array_equal(np.asarray(colours(colours(once).convert("RGBA"))), np.asarray(once))


def test_masks_and_depths_are_turned_too(tmp_path):
    for name, picture in (("l.png", GREY), ("deep.png", DEEP)):
        for orientation in (2, 6, 7):
            path = saved(tmp_path, Image.fromarray(picture), name, exif=exif(orientation))
            right = np.asarray(ImageOps.exif_transpose(Image.open(path)))
            for opened in (open_input(path), Image.open(path)):
                depth = depth_values(opened)
                assert np.array_equal(depth[0, 0].numpy(), right)
                mask = mask_tensor(opened, torch.zeros(1, 3, *right.shape))[0, 0].numpy()
                white = np.iinfo(right.dtype).max
                assert np.abs(mask - right / white).max() <= HALF_A_SHADE


# ---- greys of more than 8 bits -----------------------------------------------------------------


def deep_files(folder):
    """Each file of a deep grey, with its right values from 0 to 1."""
    share = DEEP / 65535
    floats = share.astype(np.float32)
    written = {
        "pillow.png": Image.fromarray(DEEP),
        "pillow.tiff": Image.fromarray(DEEP),
        "motorola.tiff": Image.fromarray(DEEP.astype(">u2")),
        "floats.tiff": Image.fromarray(floats),
        "integers.tiff": Image.fromarray(DEEP.astype(np.int32)),
        "compressed.tiff": Image.fromarray(DEEP),
    }
    for name, picture in written.items():
        options = {"compression": "tiff_lzw"} if "compressed" in name else {}
        yield saved(folder, picture, name, **options), share
    bytes_of = {
        "hand.png": (png(DEEP.astype(">u2"), 16, 0), share),
        "white-first.tiff": (tiff(DEEP, 16, white=0), 1 - share),
        "12-bits.tiff": (tiff(DEEP >> 4, 12, white=1), (DEEP >> 4) / 4095),
        "float-white-first.tiff": (tiff(floats, 32, white=0, sample=3), 1 - share),
    }
    for name, (content, right) in bytes_of.items():
        (folder / name).write_bytes(content)
        yield folder / name, right


def test_deep_greys_are_scaled_by_their_range(tmp_path):
    image = torch.zeros(1, 3, *DEEP.shape)
    for path, right in deep_files(tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picture = open_input(path)
        assert picture.mode in ("I", "F") or picture.mode.startswith("I;16"), path.name
        as_picture = (from_pil(picture)[0].numpy() + 1) / 2
        assert np.abs(as_picture - right).max() <= HALF_A_SHADE, path.name
        assert np.abs(mask_tensor(picture, image)[0, 0].numpy() - right).max() <= HALF_A_SHADE, (
            path.name
        )
        depth = depth_channel(depth_values(picture), DEEP.shape)[0, 0].numpy()
        assert np.abs(depth - (2 * right - 1)).max() < 0.003, path.name  # the guard's share


def test_depth_keeps_all_of_its_bits(tmp_path):
    fine = (30000 + np.arange(24 * 40)).astype(np.uint16).reshape(24, 40)
    path = saved(tmp_path, Image.fromarray(fine), "fine.png")
    assert np.array_equal(depth_values(open_input(path))[0, 0].numpy(), fine)
    for any_range in (fine.astype(np.int32) * 9 - 5, fine.astype(np.float32) / 7e4 - 3):
        depth = depth_values(Image.fromarray(any_range))
        assert np.array_equal(depth[0, 0].numpy(), any_range.astype(np.float32))
    unsigned = fine.astype(np.uint32) * 140000
    (tmp_path / "unsigned.tiff").write_bytes(tiff(unsigned, 32, white=1))
    depth = depth_values(open_input(tmp_path / "unsigned.tiff"))
    assert unsigned.max() > 2**31
    assert np.array_equal(depth[0, 0].numpy(), unsigned.astype(np.float32))


@pytest.mark.parametrize(
    "numbers",
    [
        GREY.astype(np.int32),
        DEEP.astype(np.int32) - 9,
        DEEP.astype(np.int32) * 2,
        (DEEP >> 4).astype(np.int32),
        GREY.astype(np.float32),
        np.linspace(-1, 1, 960, dtype=np.float32).reshape(24, 40),
        np.full((24, 40), np.nan, np.float32),
        np.full((24, 40), np.inf, np.float32),
    ],
)
def test_a_grey_that_does_not_say_what_is_white_is_refused(numbers):
    picture = Image.fromarray(numbers)
    for use, what in ((from_pil, "picture"), (mask_shades, "mask")):
        with pytest.raises(
            ValueError, match=rf"the {what} holds numbers from .* which number is white"
        ):
            use(picture)


# ---- colours ---------------------------------------------------------------------------------


def opaque_files(folder):
    """Files whose every pixel is opaque, in many modes, with the colours that they show."""
    colour, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    palette = colour.quantize(16)
    solid = Image.new("L", colour.size, 255)
    in_alpha = {
        "rgba.png": Image.merge("RGBA", [*colour.split(), solid]),
        "la.png": Image.merge("LA", [grey, solid]),
        "p.png": palette,
        "p.gif": palette,
        "1.png": grey.convert("1"),
        "l.png": grey,
        "l.tiff": grey,
        "rgb.tiff": colour,
        "cmyk.tiff": colour.convert("CMYK"),
    }
    for name, picture in in_alpha.items():
        yield saved(folder, picture, name), np.asarray(picture.convert("RGB"))
    # a palette with transparency that no pixel uses
    unused = palette.copy()
    path = saved(folder, unused, "unused.png", transparency=200)
    yield path, np.asarray(palette.convert("RGB"))
    path = saved(folder, palette, "opaque.png", transparency=bytes([255] * 16))
    yield path, np.asarray(palette.convert("RGB"))
    wide = (RGB.astype(int) * 256 + 77).astype(">u2")
    for name, array, kind in (
        ("48-bits.png", wide, 2),
        ("64-bits.png", np.dstack([wide, np.full(GREY.shape, 65535)]).astype(">u2"), 6),
    ):
        (folder / name).write_bytes(png(array, 16, kind))
        yield folder / name, RGB


def test_opaque_pictures_of_every_mode_show_their_colours(tmp_path):
    processor = VaeImageProcessor(vae_scale_factor=8)
    for path, right in opaque_files(tmp_path):
        right = right if right.ndim == 3 else np.dstack([right] * 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(shown(open_input(path)), right), path.name
        assert np.array_equal(shown(Image.open(path)), right), path.name
        theirs = processor.preprocess(load_image(str(path)))
        assert (from_pil(open_input(path)) - theirs).abs().max() < 1e-6, path.name


def test_opaque_masks_are_those_of_diffusers(tmp_path):
    settings = {"do_normalize": False, "do_convert_grayscale": True}
    processor = VaeImageProcessor(vae_scale_factor=8, **settings)
    for path, _ in opaque_files(tmp_path):
        theirs = processor.preprocess(load_image(str(path)))
        ours = mask_tensor(open_input(path), torch.zeros(1, 3, *GREY.shape))
        assert (ours - theirs).abs().max() < 1e-6, path.name


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "RGBa", "LAB", "PA"])
def test_modes_of_pillow_alone_show_their_colours(mode):
    plain = Image.new("RGB", (16, 8), (204, 102, 51))  # a colour of Pillow's own palette
    picture = plain.convert("RGBA").convert("RGBa") if mode == "RGBa" else plain.convert(mode)
    if mode == "PA":
        picture.putalpha(255)
    assert np.abs(shown(picture) - (204, 102, 51)).max() <= 2


def test_cmyk_jpegs_are_not_negatives(tmp_path):
    ink = Image.new("CMYK", (16, 16), (0, 200, 200, 20))
    path = saved(tmp_path, ink, "ink.jpg", quality=100)
    right = [(255 - c) * (255 - 20) / 255 for c in (0, 200, 200)]
    assert np.abs(shown(open_input(path)) - right).max() < 4


# ---- transparency ----------------------------------------------------------------------------


HOLE = np.full((24, 40), 255, np.uint8)
HOLE[4:12, 10:30] = 0


def transparent_pictures(folder):
    """Pictures with a hole, each mode and file of its own."""
    colour, alpha = Image.fromarray(RGB), Image.fromarray(HOLE)
    rgba = Image.merge("RGBA", [*colour.split(), alpha])
    la = Image.merge("LA", [Image.fromarray(GREY), alpha])
    yield "rgba", rgba
    yield (
        "one pixel, a little",
        Image.fromarray(np.dstack([RGB, np.where(GREY == 9, 254, 255)]).astype(np.uint8)),
    )
    yield "RGBa", rgba.convert("RGBa")
    yield "LA", la
    yield "La", la.convert("La")
    pa = colour.convert("P").convert("PA")
    pa.putalpha(alpha)
    yield "PA", pa
    palette = colour.quantize(16)
    used = int(np.asarray(palette)[0, 0])
    soft = bytearray([255] * 16)
    soft[used] = 100
    for name, options in {
        "index.png": {"transparency": used},
        "bytes.png": {"transparency": bytes(soft)},
        "index.gif": {"transparency": used},
        "rgba.webp": {"lossless": True},
        "rgba.tiff": {},
    }.items():
        picture = rgba if name.startswith("rgba") else palette
        yield name, open_input(saved(folder, picture, name, **options))
    grey, key = Image.fromarray(GREY), int(GREY[3, 3])
    yield "grey", open_input(saved(folder, grey, "grey.png", transparency=key))
    first = tuple(int(c) for c in RGB[0, 0])
    yield "rgb", open_input(saved(folder, colour, "rgb.png", transparency=first))
    trns = chunk(b"tRNS", struct.pack(">H", int(DEEP[5, 5])))
    yield "deep", Image.open(io.BytesIO(png(DEEP.astype(">u2"), 16, 0, trns)))
    with_palette_alpha = rgba.quantize(16)
    assert with_palette_alpha.mode == "P" and with_palette_alpha.palette.mode == "RGBA"
    yield "palette of RGBA", with_palette_alpha


def test_what_is_transparent_is_refused_and_not_shown(tmp_path):
    for name, picture in transparent_pictures(tmp_path):
        for use, what in ((from_pil, "picture"), (depth_values, "depth")):
            with pytest.raises(ValueError, match=rf"the {what} is transparent in places"):
                use(picture)
                pytest.fail(name)
        with pytest.raises(ValueError, match=r"the mask is transparent in places and of several"):
            mask_shades(picture)
            pytest.fail(name)


def painted(colour, strength, hidden=None):
    """A layer: strength h w in 0 … 255 of one colour, and another one where nothing shows."""
    layer = np.zeros((*strength.shape, 4), np.uint8)
    layer[..., :3] = colour
    layer[..., 3] = strength
    if hidden is not None:
        layer[strength == 0, :3] = hidden
    return Image.fromarray(layer)


SOFT = np.clip(np.hypot(*np.mgrid[-12:12, -20:20]) * -30 + 300, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (90, 120, 0), (0, 0, 255)])
@pytest.mark.parametrize("hidden", [None, (0, 0, 0), (17, 200, 3)])
@pytest.mark.parametrize("strength", [255 - HOLE, SOFT], ids=["hard", "soft"])
def test_paint_on_a_transparent_layer_is_a_mask(tmp_path, colour, hidden, strength):
    image = torch.zeros(1, 3, 24, 40)
    layer = painted(colour, strength, hidden)
    for picture in (layer, open_input(saved(tmp_path, layer, "mask.png")), layer.convert("RGBa")):
        assert np.array_equal(mask_shades(picture), strength)
        found = mask_tensor(picture, image)[0, 0].numpy()
        assert np.allclose(found, strength / 255)
    if colour == (255, 255, 255):
        grey = Image.merge("LA", [Image.new("L", layer.size, 255), layer.getchannel("A")])
        for picture in (grey, grey.convert("La")):
            assert np.array_equal(mask_shades(picture), strength)


def test_a_layer_in_a_palette_is_a_mask_too(tmp_path):
    layer = painted((255, 255, 255), 255 - HOLE, (0, 0, 0))
    for name, picture in (("mask.gif", layer), ("mask.png", layer.quantize(4))):
        found = mask_shades(open_input(saved(tmp_path, picture, name)))
        assert np.array_equal(found, 255 - HOLE)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (painted((0, 0, 0), 255 - HOLE), "black elsewhere"),
        (painted((0, 0, 0), HOLE), "black elsewhere"),
        (painted((30, 20, 40), HOLE), "black elsewhere"),
        (Image.fromarray(np.dstack([RGB, HOLE])), "of several colours"),
        (Image.fromarray(np.dstack([GREY, HOLE])), "of several colours"),
        (painted((255, 255, 255), HOLE * 0), "opaque nowhere"),
        (painted((255, 0, 0), np.minimum(HOLE, 128)), "opaque nowhere"),
    ],
)
def test_a_transparent_mask_that_may_mean_two_things_is_refused(mask, why):
    with pytest.raises(ValueError, match=f"transparent in places and {why}"):
        mask_tensor(mask, torch.zeros(1, 3, 24, 40))


# ---- files -----------------------------------------------------------------------------------


def big_text():
    return "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 9)


def xmp(orientation):
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text.encode())


LONG = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(big_text().encode())),
    "iTXt": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(big_text().encode())),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + zlib.compress(big_text().encode())),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("turned", [None, "eXIf", "xmp"])
def test_pngs_with_long_texts_open(tmp_path, kind, where, turned):
    marks = {None: [], "eXIf": [chunk(b"eXIf", exif(6).tobytes()[6:])], "xmp": [xmp(6)]}[turned]
    before, after = (marks, [LONG[kind]]) if where == "after" else ([*marks, LONG[kind]], [])
    (tmp_path / "long.png").write_bytes(png(RGB, 8, 2, *before, after=after))
    if where == "before":
        with pytest.raises(ValueError, match="too large"):
            Image.open(tmp_path / "long.png").load()  # what Pillow says of it
    right = (
        RGB
        if turned is None
        else np.asarray(Image.fromarray(RGB).transpose(Image.Transpose.ROTATE_270))
    )
    assert np.array_equal(shown(open_input(tmp_path / "long.png")), right)


def test_pngs_with_many_texts_open(tmp_path):
    text = b"x" * (PngImagePlugin.MAX_TEXT_CHUNK - 99)
    count = PngImagePlugin.MAX_TEXT_MEMORY // len(text) + 2
    many = [chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(text)) for i in range(count)]
    (tmp_path / "many.png").write_bytes(png(RGB, 8, 2, *many))
    assert np.array_equal(shown(open_input(tmp_path / "many.png")), RGB)


def damaged_files(folder):
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "PNG")
    noisy = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8)).save(noisy, "JPEG")
    png_bytes, jpg_bytes = whole.getvalue(), noisy.getvalue()
    for name, content in {
        "cut.png": png_bytes[: len(png_bytes) // 2],
        "cut.jpg": jpg_bytes[: len(jpg_bytes) // 2],
        "header.png": png_bytes[:20],
        "empty.png": b"",
        "text.png": b"this is no picture",
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "broken.png": png_bytes[:60] + b"\xff" * 40 + png_bytes[100:],
        "broken.gif": b"GIF89a" + b"\xff" * 30,
        "broken.tiff": tiff(DEEP, 16, 1)[:-60],
    }.items():
        (folder / name).write_bytes(content)
        yield folder / name
    yield folder
    yield folder / "gone.png"


def test_a_file_that_is_no_whole_picture_is_refused_by_one_sentence(tmp_path):
    for path in damaged_files(tmp_path):
        with pytest.raises(ValueError, match="cannot be read as a picture") as refusal:
            open_input(path)
            pytest.fail(path.name)
        assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_no_seventh_kind_opens(tmp_path):
    """An EPS would start Ghostscript."""
    (tmp_path / "p.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    written = [tmp_path / "p.png"]
    for kind in ("PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "EPS", "PDF"):
        path = tmp_path / f"{kind}.png"
        Image.fromarray(RGB).save(path, kind)
        written.append(path)
    for path in written:
        with pytest.raises(ValueError, match="not a PNG, JPEG, WebP, GIF, BMP or TIFF"):
            open_input(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX has pipes among its files")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    places = [tmp_path / "pipe.png", tmp_path / "broken.png", tmp_path / ("a" * 300), "/dev/zero"]
    for path in places:
        with pytest.raises(ValueError, match="cannot be read as a picture: "):
            open_input(path)


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(50 * 10**9)  # takes no room on the disk
    with pytest.raises(ValueError, match="not a regular file of at most 403 MB"):
        open_input(tmp_path / "huge.png")


def small_but_costly():
    """Files whose parts are without end: seconds or gigabytes in Pillow."""
    whole = png(RGB, 8, 2)
    head = whole[:33]  # of the signature and the size
    yield "chunks", head + chunk(b"abCd", b"") * 100_000 + whole[33:]
    jpeg = io.BytesIO()
    Image.new("L", (3000, 3000)).save(jpeg, "JPEG", progressive=True)
    scans = jpeg.getvalue()
    last = scans[scans.rindex(b"\xff\xda") : -2]
    yield "scans", scans[:-2] + last * 200 + b"\xff\xd9"
    yield "junk", b"\xff\xd8\xff\xe0\0\2" + b"a" * 100_000 + scans[2:]
    strips = np.full(200_000, 8, "<u2")
    tags = [(256, 1), (257, 200_000), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    entries.insert(5, struct.pack("<HHII", 273, 3, len(strips), 8 + 2 + 8 * 12 + 4))
    directory = struct.pack("<H", 8) + b"".join(entries) + bytes(4)
    yield "strips", struct.pack("<2sHI", b"II", 42, 8) + directory + strips.tobytes()
    tile = {
        256: 16,
        257: 16,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: 2**16,
        323: 2**15,
        324: 8,
        325: 9,
    }
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tile.items()]
    directory = struct.pack("<H", len(tile)) + b"".join(entries) + bytes(4)
    yield "tile", struct.pack("<2sHI", b"II", 42, 8) + directory
    yield "screen", b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b","


def test_a_file_of_endless_parts_is_refused_soon(tmp_path):
    for name, content in small_but_costly():
        path = tmp_path / name
        path.write_bytes(content)
        began = time.process_time()
        with pytest.raises(ValueError, match=r"has too many parts|is too large for a picture"):
            open_input(path)
            pytest.fail(name)
        assert time.process_time() - began < 4, name


def test_frames_without_number_are_not_all_counted(tmp_path):
    frames = [Image.new("P", (4, 4), shade) for shade in range(2)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    path.write_bytes(path.read_bytes()[:-1] + frame * 200_000 + b";")
    with pytest.warns(UserWarning, match="holds several pictures: minisd uses the first"):
        assert open_input(path).size == (4, 4)


def six_kinds():
    """A tiny good file of every kind and most of its features, by name."""
    colour, deep, floats = Image.fromarray(RGB), Image.fromarray(DEEP), DEEP.astype(np.float32)
    palette, rgba = colour.quantize(16), Image.fromarray(np.dstack([RGB, GREY]))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("minisd", '{"prompt": "a cat", "hashes": {}}', zip=True)
    others = [Image.new("RGB", colour.size, shade) for shade in ("red", "lime")]
    several = {"save_all": True, "append_images": others}
    lzw = {"compression": "tiff_lzw", "exif": exif(6)}
    pictures = {
        "png": [(colour, {"exif": exif(6), "pnginfo": notes}), (deep, {}), (rgba, {})],
        "PNG": [(palette, {"transparency": bytes(range(16))}), (colour, several)],
        "jpeg": [(colour, {"exif": exif(6)}), (colour.convert("CMYK"), {"progressive": True})],
        "webp": [(colour, {"exif": exif(6)}), (rgba, {"lossless": True}), (colour, several)],
        "gif": [(palette, {"transparency": 3, "comment": b"hi"}), (colour, several)],
        "bmp": [(colour, {}), (palette, {}), (rgba, {})],
        "tiff": [(colour, lzw), (deep, {}), (Image.fromarray(floats), {}), (colour, several)],
    }
    for kind, written in pictures.items():
        for picture, options in written:
            content = io.BytesIO()
            picture.copy().save(content, kind, **options)
            yield content.getvalue()


def mutated(content, random):
    """One to three faults: a bit, a number at the edge, a hole, a repetition, a cut."""
    content = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(min(len(content), random.choice([60, 300, 10**6]))))
        fault = random.integers(5)
        if fault == 0:
            content[at] ^= 1 << random.integers(8)
        elif fault == 1:
            content[at : at + 4] = bytes.fromhex(
                random.choice(["ffffffff", "00000000", "7fffffff"])
            )
        elif fault == 2:
            del content[at : at + random.integers(1, 9)]
        elif fault == 3:
            content[at:at] = content[at : at + random.integers(1, 40)]
        else:
            del content[at:]
        if not content:
            break
    return bytes(content)


def with_right_sums(content):
    """A PNG whose chunks' checksums are right again: else most faults end at them."""
    at, content = 8, bytearray(content)
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content)


def test_a_broken_file_is_a_picture_or_one_sentence(tmp_path, capfd):
    """Nor does Pillow or a library below it say anything: no warning, no line on the screen."""
    random, path = np.random.default_rng(18), tmp_path / "a.png"
    good = list(six_kinds())
    outcomes = set()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(600):
            path.write_bytes(with_right_sums(mutated(good[number % len(good)], random)))
            for use in (open_and_use, describe_picture, read_settings):
                try:
                    outcomes.add(type(use(path)))
                except ValueError as refusal:
                    outcomes.add(ValueError)
                    assert "\n" not in str(refusal)
    assert {ValueError, str, type(None)} < outcomes
    said = [str(warning.message) for warning in told if warning.category is not ResourceWarning]
    assert [one for one in said if not one.endswith("pictures: minisd uses the first.")] == []
    assert capfd.readouterr() == ("", "")
    # pytest takes what Pillow logs; on its own, Python would print it for want of a handler
    assert logging.getLogger("PIL").handlers


def open_and_use(path):
    picture = open_input(path)
    for use in (colours, mask_shades, depth_values):
        with contextlib.suppress(ValueError):
            use(picture)
    return picture


def test_a_picture_that_the_caller_opened_may_be_damaged(tmp_path):
    """Pillow reads the pixels only when they are asked for."""
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "PNG")
    for use, what in ((from_pil, "picture"), (mask_shades, "mask"), (depth_values, "depth")):
        lazy = Image.open(io.BytesIO(content.getvalue()[:-300]))
        with pytest.raises(ValueError, match=f"the {what} cannot be read as a picture"):
            use(lazy)


@pytest.mark.parametrize("wrong", [b"bytes", "letters", (1, 2), [None], 3.5, {}])
def test_transparency_of_a_wrong_kind_is_one_sentence(wrong):
    for mode in ("L", "RGB", "P", "1"):
        picture = Image.new(mode, (8, 8))
        picture.info["transparency"] = wrong
        for use in (from_pil, mask_shades, depth_values):
            with contextlib.suppress(ValueError):
                use(picture)


def test_info_knows_all_six_kinds(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"):
        assert is_picture(saved(tmp_path, Image.fromarray(RGB), name)), name
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"BM" + bytes(6) + b"{}")  # a header of 19,778 bytes
    assert not is_picture(weights)


def test_a_picture_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(RGB), "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"is too large for a picture .*: make it smaller"):
        open_input(path)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_the_first_of_several_pictures_is_used_and_that_is_said(tmp_path, name):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="holds 3 pictures: minisd uses the first"):
        picture = open_input(path)
    assert (shown(picture) == (255, 0, 0)).all()


def test_a_cameras_second_picture_is_not_mentioned(tmp_path):
    """Phones put a small second picture (a gain map) into a JPEG."""
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16))
    path = saved(tmp_path, first, "phone.mpo", save_all=True, append_images=[second])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (shown(open_input(path)) == 255).all()


# ---- tensors ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    return both_pipelines(V1, StableDiffusionImg2ImgPipeline, folder, **NO_FILTER)[0]


@pytest.fixture(scope="module")
def deep_sd(sd):
    """A model that reads depth. Its weights do not matter here."""
    config = with_channels(V2, 5)
    return StableDiffusion(config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)


IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
NOT_FINITE = IMAGE.clone()
NOT_FINITE[0, 1, 5, 5] = float("nan")


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (IMAGE * 2, r"values of the picture go from -2 to 2: .* in \[-1, 1\]"),
        (IMAGE + 0.01, "go from -0.99 to 1.01"),
        ((IMAGE + 1) * 127.5, "go from 0 to 255"),
        (((IMAGE + 1) * 127.5).byte(), r"whole numbers \(torch.uint8\): .* x / 127.5 - 1"),
        (NOT_FINITE, "holds numbers that are not finite"),
        (IMAGE / 0 * 1.0, "holds numbers that are not finite"),
        (IMAGE[0], r"shape \(3, 64, 64\): give a PIL image"),
        (IMAGE[:, :1], r"shape \(1, 1, 64, 64\): give a PIL image"),
        (IMAGE[:0], r"shape \(0, 3, 64, 64\): give a PIL image"),
        (IMAGE.numpy(), "the picture is of the type ndarray: give a PIL image"),
        ("cat.png", "the picture is of the type str: give a PIL image"),
    ],
)
def test_a_picture_beyond_its_range_is_refused_everywhere(sd, deep_sd, image, sentence):
    mask = torch.ones(1, 1, 64, 64)
    for call in (
        lambda: img2img(sd, "a cat", image),
        lambda: img2img_steps(sd, "a cat", image),
        lambda: inpaint(sd, "a cat", image, mask),
        lambda: inpaint_steps(sd, "a cat", image, mask),
        lambda: depth2img(deep_sd, "a cat", image, mask),
        lambda: depth2img_steps(deep_sd, "a cat", image, estimator=lambda image: mask),
        lambda: sd.encode(image),
        lambda: canny(image),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_a_rounding_error_is_no_reason_to_refuse(sd):
    sd.encode(IMAGE * 1.0005)
    canny(IMAGE.half())
    mask = mask_tensor(torch.tensor([[[[1.0005, -0.0005]]]]), torch.zeros(1, 3, 1, 2))
    assert mask.tolist() == [[[[1, 0]]]]


def test_a_picture_that_is_pale_because_its_black_is_0_gets_a_hint(sd):
    pale = (IMAGE + 1) / 2
    with pytest.warns(UserWarning, match=r"1 means white, give 2 \* image - 1"):
        img2img_steps(sd, "a cat", pale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        img2img_steps(sd, "a cat", IMAGE)
        img2img_steps(sd, "a cat", Image.new("RGB", (64, 64), "white"))


MASK = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (MASK * 255, r"values of the mask go from 0 to 255: .* in \[0, 1\]"),
        (MASK * 2 - 1, "go from -1 to 1"),
        ((MASK * 255).byte(), r"whole numbers \(torch.uint8\): .* x / 255"),
        (MASK / 0, "not finite"),
        (MASK[0], r"shape \(1, 64, 64\)"),
        (MASK.expand(-1, 3, -1, -1), r"shape \(1, 3, 64, 64\)"),
        (MASK.expand(2, -1, -1, -1), "Give a mask of the picture's size"),
        (MASK[..., :8], "Give a mask of the picture's size"),
        (MASK.numpy(), "of the type ndarray"),
    ],
)
def test_a_mask_beyond_its_range_is_refused_before_any_work(sd, mask, sentence, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "encode", lambda *given: pytest.fail("work was done"))
    for call in (inpaint, inpaint_steps):
        with pytest.raises(ValueError, match=sentence):
            call(sd, "a cat", IMAGE, mask)


def test_true_and_false_are_a_mask():
    covered = MASK > 0.5
    assert torch.equal(mask_tensor(covered, IMAGE), covered.float())


def test_depth_may_have_any_range_but_must_be_finite(deep_sd, monkeypatch):
    seen = []

    def channel_of(depth, size):
        seen.append(depth)
        return depth_channel(depth, size)

    monkeypatch.setattr("minisd.tasks.depth2img.depth_channel", channel_of)
    depth = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    channel = depth_channel(depth, (8, 8))
    for scale, shift in ((1, 0), (1e4, 5), (1e-5, 0), (3, -9)):
        depth2img_steps(deep_sd, "a cat", IMAGE, depth * scale + shift)
        assert (depth_channel(seen[-1], (8, 8)) - channel).abs().max() < 3e-3
    depth2img_steps(deep_sd, "a cat", IMAGE, (depth * 255).byte())
    assert (depth_channel(seen[-1].float(), (8, 8)) - channel).abs().max() < 1e-2
    depth2img_steps(deep_sd, "a cat", IMAGE, torch.ones(1, 1, 5, 5))
    assert torch.equal(seen[-1], torch.ones(1, 1, 5, 5))
    for wrong in (depth / 0, depth[0], depth.expand(-1, 3, -1, -1), depth.numpy()):
        with pytest.raises(ValueError, match="the depth"):
            depth2img_steps(deep_sd, "a cat", IMAGE, wrong)


def test_checks_of_depth2img_come_before_the_estimator(deep_sd):
    def estimator(image):
        pytest.fail("work was done")

    for wrong in ({"seed": 2**64}, {"strength": 2}, {"steps": 0}):
        with pytest.raises(ValueError, match=r"seed|strength|steps"):
            depth2img_steps(deep_sd, "a cat", IMAGE, estimator=estimator, **wrong)


# ---- through the tasks and the command line ----------------------------------------------------


def test_tasks_turn_a_picture_that_the_caller_opened(sd, tmp_path):
    """Photo and mask lie on their sides; the result is as if they had been turned before."""
    shades = rng.integers(0, 256, (64, 96, 3), np.uint8)
    covered = np.zeros((64, 96), np.uint8)
    covered[20:50, 10:40] = 255
    sideways = {}
    for name, array in (("photo", shades), ("mask", covered)):
        turned = Image.fromarray(array).transpose(Image.Transpose.ROTATE_90)
        sideways[name] = saved(tmp_path, turned, f"{name}.png", exif=exif(6))
    upright = {"photo": Image.fromarray(shades), "mask": Image.fromarray(covered)}
    opened = {name: Image.open(path) for name, path in sideways.items()}
    assert opened["photo"].size == (64, 96)
    settings = {"steps": 2, "seed": 1}
    pairs = []
    for photo, mask in ((upright["photo"], upright["mask"]), (opened["photo"], opened["mask"])):
        drawn = [last(img2img_steps(sd, "a cat", photo, **settings))]
        drawn.append(last(inpaint_steps(sd, "a cat", photo, mask, **settings)))
        quarter = HintSettings(widths=(16, 32, 96))  # for the tiny model's factor
        network = ControlNet(sd.config.unet, quarter).requires_grad_(False)
        with (
            pytest.raises(ValueError, match=r"the picture is 64 x 96"),
            control(sd, network, photo),
        ):
            sd.txt2img_steps("a cat", width=64, height=96, steps=1).__next__()
        pairs.append(drawn)
    assert all(torch.equal(*each) for each in zip(*pairs, strict=True))
    assert pairs[1][0].shape[2:] == (16, 24)  # the tiny model's factor is 4


def test_a_transparent_hint_is_refused_by_name(sd):
    network = ControlNet(sd.config.unet).requires_grad_(False)
    with pytest.raises(ValueError, match="is transparent in places"):
        control(sd, network, painted((255, 255, 255), 255 - HOLE))


@pytest.mark.parametrize("command", ["img2img", "inpaint", "depth", "control"])
def test_the_command_line_refuses_what_is_transparent(tmp_path, capsys, command):
    photo = saved(tmp_path, Image.new("RGB", (64, 64), "red"), "photo.png")
    hole = np.full((64, 64), 255, np.uint8)
    hole[:9] = 0
    shades = rng.integers(0, 256, (64, 64, 3), np.uint8)
    clear = saved(tmp_path, Image.fromarray(np.dstack([shades, hole])), "clear.png")
    given = {
        "img2img": [clear],
        "inpaint": [photo, clear],
        "depth": [photo, "--depth", clear, "--model", "mini-depth"],
        "control": ["mini-edges", clear],
    }[command]
    out = tmp_path / "out.png"
    if command == "control":
        from minisd.config import WEIGHTS

        given[0] = WEIGHTS / "mini-edges.safetensors"
    arguments = [command, "a cat", *map(str, given), "-o", str(out), "--steps", "1"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert "is transparent in places" in error and len(error.splitlines()) == 1
    assert not out.exists()


def test_the_command_line_draws_from_a_phones_photo(tmp_path, capsys):
    shades = rng.integers(0, 256, (64, 97, 3), np.uint8)
    turned = Image.fromarray(shades).transpose(Image.Transpose.ROTATE_90)
    photo = saved(tmp_path, turned, "photo.png", exif=exif(6))
    mask = saved(
        tmp_path,
        painted((255, 0, 0), np.full((64, 97), 255, np.uint8) * (shades[..., 0] > 99)),
        "mask.png",
    )
    out = tmp_path / "out.png"
    arguments = ["inpaint", "a cat", str(photo), str(mask), "-o", str(out), "--steps", "1"]
    assert main(arguments) == 0
    assert "resized from 97 x 64 to 96 x 64" in capsys.readouterr().err
    assert Image.open(out).size == (96, 64)


# ---- seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "count"),
    [(-(2**63), 1), (2**64 - 1, 1), (2**64 - 3, 3), (np.int64(2**63 - 1), 2), (range(3), 3)],
)
def test_seeds_of_64_bits_are_taken(seed, count):
    first = seed if isinstance(seed, int) else int(np.asarray(seed).reshape(-1)[0])
    assert check_seeds(seed, count) == [first + i for i in range(count)]
    for generator, each in zip(
        make_generators(seed, count), range(first, first + count), strict=True
    ):
        noise = torch.randn(4, generator=generator)
        assert torch.equal(noise, torch.randn(4, generator=torch.Generator().manual_seed(each)))


def test_seeds_in_arrays_are_taken():
    for seeds in ([9, 4], (9, 4), np.array([9, 4]), torch.tensor([9, 4]), [np.int32(9), 4]):
        assert check_seeds(seeds, 2) == [9, 4]
    assert check_seeds(torch.tensor(9), 2) == [9, 10]


@pytest.mark.parametrize(
    ("seed", "sentence"),
    [
        (
            2**64,
            r"the seed 18446744073709551616 is not in -9223372036854775808 … 18446744073709551615",
        ),
        (2**64 - 1, r"the seed 18446744073709551616 is not in .* Sample i uses seed \+ i"),
        (-(2**63) - 1, "is not in"),
        ([1, 2**64], "is not in"),
        (1.5, "a seed must be a whole number, got 1.5"),
        (float("nan"), "a seed must be a whole number"),
        (np.float32(1), "a seed must be a whole number"),
        (torch.tensor([1.0, 2.0]), "a seed must be a whole number"),
        (True, "a seed must be a whole number, got True"),
        ([1, False], "a seed must be a whole number"),
        ("7", "a seed must be a whole number, got '7'"),
        (None, "a seed must be a whole number, got None"),
        ([1, 2, 3], "2 prompts need 2 seeds, got 3"),
    ],
)
def test_other_seeds_are_refused_before_any_work(sd, seed, sentence, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "embed", lambda *given: pytest.fail("work was done"))
    monkeypatch.setattr(StableDiffusion, "encode", lambda *given: pytest.fail("work was done"))
    for call in (
        lambda: sd.txt2img(["a cat", "a dog"], seed=seed),
        lambda: sd.txt2img_steps(["a cat", "a dog"], seed=seed),
        lambda: img2img(sd, ["a cat", "a dog"], IMAGE, seed=seed),
        lambda: inpaint(sd, ["a cat", "a dog"], IMAGE, MASK, seed=seed),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
