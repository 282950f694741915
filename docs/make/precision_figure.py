"""Draw the same pictures with 32 and with 16 bits, for docs/speed.md.

python -m docs.make.precision_figure        # writes docs/images/speed-bf16.png
"""

from pathlib import Path

import torch
from PIL import Image

import minisd
from minisd.files.whole_files import save_picture
from minisd.teaching.picture_grid import paste_grid

PROMPTS = [
    "a cat on a blue background",
    "a dog on a green background",
    "a red apple on a white background",
    "a rocket on a black background",
    "a flat drawing of a tree on a yellow background",
    "a small star on the left on a purple background",
]
ROWS = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "openvino")]
LARGER, COLUMNS = 2, len(PROMPTS)


def draw_rows() -> list[Image.Image]:
    """One row of pictures for each of ROWS. All rows have the same prompts and seeds."""
    pictures = []
    for dtype, engine in ROWS:
        sd = minisd.load("mini", dtype=dtype, engine=engine)
        drawn = sd.txt2img(PROMPTS, seed=[3] * len(PROMPTS))
        assert isinstance(drawn, list)
        size = (LARGER * sd.config.size, LARGER * sd.config.size)
        pictures += [one.resize(size, Image.Resampling.NEAREST) for one in drawn]
    return pictures


if __name__ == "__main__":
    sheet, _ = paste_grid(draw_rows(), COLUMNS, 6)
    save_picture(sheet, Path("docs/images/speed-bf16.png"))
