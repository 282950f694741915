"""Read the emoji that the mini's training pictures are composed of.

A cut-out is a small picture of one emoji with a transparent background. One file holds all
cut-outs: weights/emoji.safetensors.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from minisd.checkpoints.header import read_metadata
from minisd.config import WEIGHTS
from minisd.files.json_files import check_value, parse_json
from minisd.files.picture_files import explain_pillow_errors

FINE_THINGS = ("cat", "tiger", "rabbit", "lion", "owl", "butterfly", "bee", "snail")
FINE_THINGS += ("maple leaf", "sunflower", "strawberry", "watermelon")  # drawn with thin lines
LARGEST_TILE = 1024  # px: the longest side allowed. The shipped cut-outs have sides of 104 px


@dataclass(frozen=True, eq=False)
class Emoji:
    """All cut-outs: small pictures of each thing in each style, with transparent backgrounds.

    tiles: the cut-outs, thing style h w rgba, 0..255. The colours are not multiplied by the opacity
    """

    things: tuple[str, ...]
    styles: tuple[str, ...]
    categories: dict[str, str]  # thing -> "animal", "plant", "food", "person" or "object"
    sources: dict[str, dict[str, str]]  # style -> package, version, author, licence ...
    tiles: np.ndarray

    @classmethod
    def load(cls, path: Path = WEIGHTS / "emoji.safetensors") -> "Emoji":
        """Read the file that docs/make/draw_emoji.py writes.

        Raises ValueError if the file cannot be read.
        """
        try:
            header = read_metadata(path)
            with safe_open(path, framework="np") as file:
                tables: list[Any] = [parse_json(header[name]) for name in ("things", "styles")]
                categories, sources = tables
                check_value("things", categories, dict)
                check_value("styles", sources, dict)
                names = [[f"{thing}/{style}" for style in sources] for thing in categories]
                tiles = [[read_tile(file.get_tensor(name)) for name in row] for row in names]
                tiles = np.array(tiles)
        except (SafetensorError, LookupError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"Cannot read the emoji cut-outs from {path} ({error}). Restore the file from the "
                "repository, or draw it again with `python -m docs.make.draw_emoji`."
            ) from error
        return cls(tuple(categories), tuple(sources), categories, sources, tiles)

    def only(self, things: tuple[str, ...]) -> "Emoji":
        """A copy that has only these things, in every style."""
        chosen = [self.things.index(thing) for thing in things]
        return replace(self, things=things, tiles=self.tiles[chosen])


def read_tile(png: np.ndarray) -> np.ndarray:
    """Decode the bytes of one PNG file. returns: h w rgba, 0..255

    Raises ValueError if the bytes are not a PNG file, or if a side is longer than LARGEST_TILE.
    """
    file = io.BytesIO(png.tobytes())
    with explain_pillow_errors("a cut-out"), Image.open(file, formats=["PNG"]) as tile:
        if max(tile.size) > LARGEST_TILE:
            raise ValueError(f"a cut-out is larger than {LARGEST_TILE} x {LARGEST_TILE} pixels")
        return np.asarray(tile.convert("RGBA"))
