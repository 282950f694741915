"""Draw the cut-outs of the training pictures from four emoji sets into one small file.

This is needed only to change the choice of emoji. Trainings read the shipped file.

    pip install resvg-py
    npm pack @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5
    npm pack @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji@1.2.7
    python -m docs.make.draw_emoji FOLDER_OF_TGZ -o weights/emoji.safetensors

A package contains its drawings as SVG, in one JSON file. Each chosen drawing is trimmed to its
visible part, centred in a square and drawn at 104 px. The output file keeps it as PNG bytes under a
name such as "cat/flat". The header says from which package each style comes (version, sha256,
author, licence).
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from minisd.config import WEIGHTS
from minisd.files.json_files import parse_json
from minisd.files.whole_files import written_whole

LARGEST = 10**8  # bytes of the drawings in a package
TILE = 104  # px: 80 % of a 128-px canvas, twice the 52 px that a 64-px canvas shows
PROBE = 256  # px at which a drawing is looked at to find its borders
VISIBLE = 16  # of 255: less opaque pixels are the end of a soft shadow, not the drawing

# The word for a style in captions -> its package, as npm names it.
STYLES = {
    "noto": "iconify-json-noto-*.tgz",
    "twemoji": "iconify-json-twemoji-*.tgz",
    "flat": "iconify-json-fluent-emoji-flat-*.tgz",
    "glossy": "iconify-json-fluent-emoji-[0-9]*.tgz",
}

# The word that captions use for a thing; "word=name" if the emoji sets have another name for it.
# Chosen by eye: easy to recognise at 52 px, similar in all four styles, unlike every other thing.
THINGS = {
    "animal": """cat=cat-face, dog=dog-face, rabbit=rabbit-face, fox, bear, panda, koala,
        tiger=tiger-face, lion, cow=cow-face, pig=pig-face, frog, monkey=monkey-face,
        chick=baby-chick, penguin, duck, owl, parrot, horse, unicorn, giraffe, elephant, turtle,
        snake, whale=spouting-whale, fish=tropical-fish, shark, octopus, crab, snail, butterfly,
        bee=honeybee, ladybug=lady-beetle""",
    "plant": """tree=deciduous-tree, palm tree=palm-tree, christmas tree=christmas-tree, cactus,
        rose, tulip, sunflower, flower=cherry-blossom, maple leaf=maple-leaf, mushroom""",
    "food": """apple=red-apple, pear, lemon, banana, watermelon, grapes, strawberry, cherries,
        pineapple, avocado, tomato, eggplant, carrot, corn=ear-of-corn, broccoli,
        cheese=cheese-wedge, hamburger, fries=french-fries, pizza, ice cream=soft-ice-cream,
        doughnut, cake=birthday-cake, lollipop, coffee=hot-beverage, beer=beer-mug""",
    "person": """man, woman, man with red hair=man-red-hair, woman with red hair=woman-red-hair,
        man with a beard=man-beard, santa=santa-claus, robot, ghost, alien, skull,
        clown=clown-face, smiley=grinning-face, pumpkin=jack-o-lantern,
        snowman=snowman-without-snow""",
    "object": """house, castle, car=automobile, bus, train=locomotive, airplane, rocket, sailboat,
        star, heart=red-heart, sun, moon=crescent-moon, cloud, rainbow, fire, snowflake,
        earth=globe-showing-europe-africa, volcano, football=soccer-ball, basketball, balloon,
        gift=wrapped-gift, crown, key, bell, umbrella, book=closed-book, clock=alarm-clock,
        guitar, camera, hat=top-hat, trophy, lamp=light-bulb""",
}


def all_things() -> dict[str, tuple[str, str]]:
    """Every thing's word -> (its category, its name in the emoji sets)."""
    things = {}
    for category, entries in THINGS.items():
        for entry in " ".join(entries.split()).split(", "):
            word, _, name = entry.partition("=")
            things[word] = (category, name or word)
    return things


def draw(body: str, box: tuple[float, float, float, float], pixels: int) -> Image.Image:
    """One SVG drawing as an RGBA picture; box is the part shown: x, y, width, height."""
    # Only this script needs it, so it is not installed where types are checked.
    from resvg_py import svg_to_bytes  # pyright: ignore[reportMissingImports]

    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    view = " ".join(f"{number:.4f}" for number in box)
    size = f'viewBox="{view}" width="{pixels}" height="{pixels}"'
    png = svg_to_bytes(svg_string=f"<svg {namespaces} {size}>{body}</svg>")
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def cut_out(body: str, side: float) -> Image.Image:
    """The drawing trimmed to what is visible and centred, TILE x TILE. side: of its own canvas."""
    margin = side / 4  # a few drawings are larger than their canvas
    probe = draw(body, (-margin, -margin, side + 2 * margin, side + 2 * margin), PROBE)
    visible = np.asarray(probe)[..., 3] >= VISIBLE
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    unit = (side + 2 * margin) / PROBE
    top, bottom = rows[0] * unit - margin, (rows[-1] + 1) * unit - margin
    left, right = columns[0] * unit - margin, (columns[-1] + 1) * unit - margin
    longer = max(bottom - top, right - left)
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    return draw(body, (middle_x - longer / 2, middle_y - longer / 2, longer, longer), TILE)


def read_package(folder: Path, pattern: str) -> tuple[dict, dict]:
    """The icons of one packed emoji set, and where they come from."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} files named {pattern}, and exactly one is needed. "
            "Fetch it with the `npm pack` command in the docstring of this script."
        )
    with tarfile.open(found[0]) as packed:
        names = ("icons", "info", "package")
        files = [packed.extractfile(f"package/{name}.json") for name in names]
        contents: list[Any] = [parse_json(file.read(), LARGEST) for file in files if file]
        icons, about, package = contents
    source = {
        "package": package["name"],
        "version": package["version"],
        "sha256": hashlib.sha256(found[0].read_bytes()).hexdigest(),
        "name": about["name"],
        "author": about["author"]["name"],
        "source": about["author"]["url"],
        "licence": about["license"]["spdx"],
    }
    return icons, source


def body_of(icons: dict, name: str) -> str:
    """The SVG of one emoji. name: its own, or an alias"""
    alias = icons.get("aliases", {}).get(name, {})
    return icons["icons"][alias.get("parent", name)]["body"]


def png_bytes(tile: Image.Image) -> np.ndarray:
    """The tile as the bytes of a PNG file: 5 kB instead of 43, without loss."""
    buffer = io.BytesIO()
    tile.save(buffer, "PNG", optimize=True)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def build(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All cut-outs as PNG bytes by "thing/style", and the header that describes them."""
    things = all_things()
    tiles, sources = {}, {}
    for style, pattern in STYLES.items():
        icons, sources[style] = read_package(folder, pattern)
        for thing, (_, name) in things.items():
            tiles[f"{thing}/{style}"] = png_bytes(cut_out(body_of(icons, name), icons["width"]))
    header = {
        "things": json.dumps({thing: category for thing, (category, _) in things.items()}),
        "styles": json.dumps(sources),
    }
    return tiles, header


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the training cut-outs from four emoji sets.")
    parser.add_argument("folder", type=Path, help="holds the four .tgz that `npm pack` fetched")
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS / "emoji.safetensors")
    arguments = parser.parse_args()
    tiles, header = build(arguments.folder)
    with written_whole(arguments.output) as unfinished:
        save_file(tiles, unfinished, metadata=header)
    megabytes = arguments.output.stat().st_size / 1e6
    print(f"{len(tiles)} cut-outs, {megabytes:.1f} MB in {arguments.output}")


if __name__ == "__main__":
    main()
