"""Draw the cut-outs of the training pictures out of four emoji sets, into one small file.

Run it only to change the choice; training needs nothing but the shipped file.

    pip install resvg-py
    npm pack @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5
    npm pack @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji@1.2.7
    python -m docs.make.draw_emoji FOLDER_OF_TGZ -o weights/emoji.safetensors

A package holds its drawings as SVG in one JSON. Each chosen one is trimmed to what is visible,
centred in a square and drawn at 104 px. The file keeps it as PNG bytes named "cat/flat"; its header
says what was drawn from which package (version, sha256, author, licence).
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

LARGEST = 10**8  # bytes of a package's drawings
TILE = 104  # px: 80 % of a 128-px canvas, twice the 52 px that a 64-px canvas shows
PROBE = 256  # px at which a drawing is looked at to find its borders
VISIBLE = 16  # of 255: fainter than this is the end of a soft shadow, no part of the drawing

# The word that captions use for a style -> its packed file, as npm names it.
STYLES = {
    "noto": "iconify-json-noto-*.tgz",
    "twemoji": "iconify-json-twemoji-*.tgz",
    "flat": "iconify-json-fluent-emoji-flat-*.tgz",
    "glossy": "iconify-json-fluent-emoji-[0-9]*.tgz",
}

# The word that captions use for a thing; "word=name" where the emoji sets call it otherwise.
# Chosen by eye: known at a glance at 52 px, alike in all four styles, no near twins.
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


def chosen() -> dict[str, tuple[str, str]]:
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
    margin = side / 4  # a few drawings reach over their canvas
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
    """One packed emoji set: its icons, and what is to be said of where they come from."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} files named {pattern}, and one is needed: "
            "fetch it with the `npm pack` that this script's docstring gives."
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
    """The SVG of one emoji, by its name or by another name of the same."""
    alias = icons.get("aliases", {}).get(name, {})
    return icons["icons"][alias.get("parent", name)]["body"]


def png_bytes(tile: Image.Image) -> np.ndarray:
    """The tile as the bytes of a PNG file: 5 kB in place of 43, nothing lost."""
    buffer = io.BytesIO()
    tile.save(buffer, "PNG", optimize=True)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def build(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All cut-outs as PNG bytes by "thing/style", and the header that describes them."""
    things = chosen()
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
