"""Draw the pictures of docs/steering.md with the page's own commands, and compute its tables.

The page is the only place of these commands. A picture stands below each block of commands:

    ![given: examples/pair.png; first label; second label](images/steering-depth.png)

This program runs the commands, puts what they draw side by side with a label below each, and saves
the result under the name of that picture. The first labels can end with paths: they are those of
input pictures. Every other label belongs to one command, in the same order.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minisd
from docs.make.mini_report import Cell, markdown, refill_page, sheet
from docs.make.steering_figures import (
    COUNT,
    LCM_COUNT,
    classifier_row,
    measure_depth,
    measure_detail,
    measure_edges,
    measure_lcm,
    measure_outside,
    measure_word,
)
from minisd.files.pictures import from_pil
from minisd.files.whole_files import save_picture, write_text
from minisd.mini.emoji import Emoji
from minisd.mini.examples import hat_mask, write_input_pictures
from minisd.mini.scenes import batch

SEED = 3
WORK = Path("runs/steering")  # the commands run in this folder
IMAGES = Path("docs/images")
# Pictures that show a part of each cell again, enlarged: left, top, right, bottom of the part.
# The last of their labels only mentions this.
DETAILS = {"steering-vae.png": (20, 14, 52, 46)}
BLOCK = r"```bash\n([^`]*)```\n\n!\[([^]]*)\]\(images/([\w-]+\.png)\)"


class Strip(NamedTuple):
    """A block of commands, and the picture below it. given: label and path of input pictures"""

    file: str
    given: list[tuple[str, str]]
    commands: list[str]
    labels: list[str]


def read_strips(page: str) -> list[Strip]:
    """Every block of commands in the text of a page that has a picture below it.

    Raises ValueError if the number of labels is not the number of commands.
    """
    strips = []
    for block, alt_text, file in re.findall(BLOCK, page):
        labels = alt_text.replace("\\", "").split("; ")
        given = re.findall(r"(?:^|; )([^;]*): ([^;]*\.png)(?=;)", alt_text)
        labels = labels[len(given) : -1 if file in DETAILS else None]
        commands = block.splitlines()
        if len(labels) != len(commands):
            raise ValueError(
                f"{file} has {len(commands)} commands and {len(labels)} labels. Write one label "
                'for each command, with "; " between them.'
            )
        strips.append(Strip(file, given, commands, labels))
    return strips


def draw_strip(strip: Strip) -> Image.Image:
    """Run the commands. Returns the input pictures and those that the commands drew, in one row.

    Raises ValueError if a command fails.
    """
    cells = [Cell(read_picture(WORK / path), label) for label, path in strip.given]
    for command, label in zip(strip.commands, strip.labels, strict=True):
        words = shlex.split(command)
        output = WORK / words[words.index("-o") + 1]
        output.unlink(missing_ok=True)  # minisd does not overwrite files
        if subprocess.run([sys.executable, "-m", *words], cwd=WORK, check=False).returncode:
            raise ValueError(f"This command failed: {command}")
        cells.append(Cell(read_picture(output), label))
    if part := DETAILS.get(strip.file):
        cells += [Cell(enlarge(cell.image, part), "larger") for cell in cells]
    return sheet(cells, len(cells))


def enlarge(image: Tensor, part: tuple[int, int, int, int]) -> Tensor:
    """A part of the picture, as large as the picture. 3 h w; part: left, top, right, bottom"""
    left, top, right, bottom = part
    return F.interpolate(image[None, :, top:bottom, left:right], image.shape[1:])[0]


def read_picture(path: str | Path) -> Tensor:
    return from_pil(Image.open(path).convert("RGB"))[0]


def write_report(folder: Path = Path("docs")) -> dict:
    """Renew all pictures, the figures and the tables of folder/steering.md. Returns the figures."""
    path, sd = folder / "steering.md", minisd.load("mini")
    strips = read_strips(path.read_text(encoding="utf-8"))
    write_input_pictures(WORK / "examples")  # as `minisd examples` writes them
    for strip in strips:
        save_picture(draw_strip(strip), IMAGES / strip.file, optimize=True)
    emoji = Emoji.load()
    real = batch(emoji, sd.config.size, COUNT, SEED, step=0, split="heldout")
    more = batch(emoji, sd.config.size, LCM_COUNT, SEED, step=0, split="heldout")
    guided, picture = classifier_row(sd)
    save_picture(picture, IMAGES / "steering-classifier-things.png", optimize=True)
    figures = {
        "edges": measure_edges(sd, real.images, real.scenes),
        "depth": measure_depth(sd, real.images, real.scenes),
        "outside": measure_outside(real.images, real.scenes, hat_mask()),
        "classifier": guided,
        "word": measure_word(sd),
        "lcm": measure_lcm(sd, more.scenes),
        "detail": measure_detail(sd, real.images),
    }
    write_text(folder / "steering.json", json.dumps(figures, indent=1) + "\n")
    refill_page(path, tables(figures))
    return figures


def tables(figures: dict) -> dict[str, str]:
    """The page's tables, by name."""
    outside = [[n, f"{v['most']:.0f}", f"{v['mean']:.1f}"] for n, v in figures["outside"].items()]
    simple: dict[str, tuple[str, Callable]] = {
        "edges": ("ControlNet | F1 of the edges", "{:.2f}".format),
        "depth": ("depth channel | correlation of the depths", "{:.2f}".format),
        "classifier": ("scale | the thing is seen", "{:.0%}".format),
        "word": ("the word's file | a fox is seen", "{:.0%}".format),
        "lcm": ("drawn with | all of the picture is right", "{:.1%}".format),
    }
    made = {
        f"{name} figures": markdown(head, [[k, form(v)] for k, v in figures[name].items()])
        for name, (head, form) in simple.items()
    }
    measured = figures["detail"]
    detail = []
    for name, row in measured.items():
        *decibels, spread = row.values()
        detail.append([name, *(f"{each:.1f}" for each in decibels), f"{spread:.0%}"])
    heads = " | ".join(["decoder", *next(iter(measured.values()))])
    return made | {
        "outside figures": markdown("model | largest change | mean change", outside),
        "detail figures": markdown(heads, detail),
    }


if __name__ == "__main__":
    write_report()
