"""The input pictures of the commands in docs/steering.md."""

from pathlib import Path

from numpy.random import default_rng
from PIL import Image, ImageDraw

from minisd.config import MINI
from minisd.files.pictures import from_pil, to_pil
from minisd.files.whole_files import make_folder, save_picture
from minisd.mini.captions import Scene
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import compose_scene, to_tensor
from minisd.tasks.canny import canny
from minisd.tasks.inpaint import mask_tensor, picture_with_hole


def crude_apple() -> Image.Image:
    """Draw a simple apple. Anybody could draw this apple in a minute."""
    picture = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((13, 18, 51, 57), fill=(90, 190, 60))
    pen.line((32, 20, 36, 8), fill=(110, 70, 30), width=3)
    return picture


def hat_mask(size: int = 64) -> Image.Image:
    """A mask that is white in the upper part, where a hat would be."""
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rectangle((4, 2, size - 5, 25), fill=255)
    return mask


def write_input_pictures(folder: Path) -> list[Path]:
    """Write the input pictures into the folder. Returns the paths of all pictures.

    Files that already exist are not overwritten.
    """
    make_folder(folder)
    pictures, emoji = {"crude-apple": crude_apple(), "hat-mask": hat_mask()}, Emoji.load()
    for name, scene, shade in (  # shade: the seed of the background's shade
        ("santa", Scene(("santa",), (None,), "noto", "cyan"), 1),
        ("pair", Scene(("cat", "dog"), (None, None), "noto", "white"), 1),
        ("rabbit", Scene(("rabbit",), (None,), "glossy", "white"), 1),
        ("strawberry", Scene(("strawberry",), (None,), "twemoji", "blue"), 1),
        ("ears", Scene(("rabbit",), (None,), "twemoji", "white"), 4),
    ):
        picture, _ = compose_scene(emoji, scene, MINI.size, default_rng(shade))
        pictures[name] = to_pil(to_tensor([picture]))[0]
    santa, ears = from_pil(pictures["santa"]), from_pil(pictures["ears"])
    pictures["santa-hole"] = to_pil(picture_with_hole(santa, mask_tensor(hat_mask(), santa)))[0]
    pictures["ears-edges"] = to_pil(canny(ears) * 2 - 1)[0]
    paths = {name: folder / f"{name}.png" for name in pictures}
    for name, path in paths.items():
        if not path.exists():
            save_picture(pictures[name], path)
    return list(paths.values())
