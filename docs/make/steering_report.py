"""docs/steering.md: every way to steer the mini, as commands with what they draw, and in figures.

The pictures are made by the very commands that the page shows, run in a folder of their own.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minisd
from docs.make.mini_report import Cell, markdown, refill_page, sheet
from docs.make.steering_figures import (
    CLASSIFIER_SCALES,
    COUNT,
    classifier_row,
    measure_depth,
    measure_detail,
    measure_edges,
    measure_outside,
    measure_word,
)
from minisd.files.pictures import from_pil
from minisd.files.whole_files import save_picture, write_text
from minisd.mini.emoji import Emoji
from minisd.mini.examples import hat_mask, write_input_pictures
from minisd.mini.scenes import batch

SEED = 3
WORK = Path("runs/steering")  # where the commands run; the page shows their pictures side by side
EXAMPLES = "examples"  # what they are given, as `minisd examples` writes it
IMAGES = Path("docs/images")


@dataclass(frozen=True)
class Row:
    """One strip of the page: what was given, then what each command drew, with a word on each."""

    given: tuple[tuple[str, str], ...]  # (file, word)
    commands: tuple[tuple[str, str], ...]  # (command without its -o, word)
    detail: tuple[int, int, int, int] | None = None  # left, top, right, bottom: shown larger, too


def strength_row(prompt: str, picture: str) -> Row:
    command = f'minisd img2img "{prompt}" examples/{picture}.png --seed 1 --strength'
    strengths = (0.25, 0.5, 0.75, 1)
    given = ((f"examples/{picture}.png", "given"),)
    return Row(given, tuple((f"{command} {s}", f"strength {s}") for s in strengths))


def led_row(given: tuple, led: str, free: str, prompts: tuple[str, ...]) -> Row:
    """Every prompt in the place of {}, drawn by the command that leads and by one that does not."""
    ways = (("led", led), ("not led", free))
    commands = (
        (f"minisd {way.format(p)} --seed 1", f"{word}: {p}") for word, way in ways for p in prompts
    )
    return Row(given, tuple(commands))


def scale_row(command: str, option: str, scales: tuple) -> Row:
    """The same with an adapter's scale, or with any number in the place of {}."""
    return Row((), tuple((f"{command} {option.format(s)}", f"{s:g}") for s in scales))


CAT = 'minisd generate "a cat on a yellow background" --seed 2'
ROWS = {
    "img2img": strength_row("a green apple on a white background", "crude-apple"),
    "inpaint": Row(
        (
            ("examples/santa.png", "given"),
            ("examples/hat-mask.png", "mask"),
            ("examples/santa-hole.png", "what is left"),
        ),
        tuple(
            (
                f'minisd inpaint "a santa on a cyan background" examples/santa.png '
                f"examples/hat-mask.png --model {model} --seed {seed} --paste",
                f"{model}, seed {seed}",
            )
            for model in ("mini", "mini-inpaint")
            for seed in (1, 2)
        ),
    ),
    "depth": led_row(
        (("examples/pair.png", "given"),),
        'depth "{}" examples/pair.png --model mini-depth --strength 1',
        'img2img "{}" examples/pair.png --strength 1',
        (
            "a lemon on a pink background",
            "a flat panda on a green background",
            "a rocket on a blue background",
        ),
    ),
    "depth-styles": led_row(
        (("examples/rabbit.png", "given"),),
        'depth "{}" examples/rabbit.png --model mini-depth --strength 1',
        'img2img "{}" examples/rabbit.png --strength 1',
        (
            "a noto pink rabbit on a yellow background",
            "a twemoji blue rabbit on a white background",
            "a twemoji rabbit on a red background",
        ),
    ),
    "control": led_row(
        (("examples/ears.png", "given"), ("examples/ears-edges.png", "its edges")),
        'control "{}" mini-edges examples/ears-edges.png',
        'generate "{}"',
        (
            "a green rabbit on a white background",
            "a pink rabbit on a black background",
            "a purple rabbit on a yellow background",
        ),
    ),
    "lora": scale_row(CAT, "--lora mini-blueprint:{}", (0, 0.5, 1)),
    "hypernetwork": scale_row(CAT, "--hypernetwork mini-sepia:{}", (0, 0.5, 1)),
    "word": Row(
        (),
        tuple(
            (f'minisd generate "{prompt}" --embedding mini-blorp', prompt)
            for prompt in (
                "a <blorp> on a green background",
                "a blue <blorp> on a white background",
                "a small glossy <blorp> on the left on a red background",
            )
        ),
    ),
    "classifier": scale_row(
        'minisd generate "" --seed 4 --scale 1 --classifier',
        "mini-classifier:cat:{}",
        CLASSIFIER_SCALES,
    ),
    "scale": scale_row(CAT, "--scale {}", (0, 1, 2, 3, 5, 7.5, 15)),
    "vae": Row(
        (("examples/strawberry.png", "given"),),
        tuple(
            (f'minisd img2img "" examples/strawberry.png --strength 0{more}', word)
            for more, word in (
                ("", "the mini's decoder"),
                (" --vae mini-decoder", "fine-tuned"),
            )
        ),
        detail=(20, 14, 52, 46),
    ),
}


def strip(name: str, row: Row) -> tuple[str, Image.Image]:
    """Run a row's commands. Returns them as they are to be typed, and their pictures in a row."""
    cells = [Cell(read_picture(WORK / path), word) for path, word in row.given]
    typed = []
    for number, (command, word) in enumerate(row.commands):
        output = f"{name}-{number}.png"
        (WORK / output).unlink(missing_ok=True)  # minisd writes over nothing
        typed.append(f"{command} -o {output}")
        words = [sys.executable, "-m", *shlex.split(typed[-1])]
        if subprocess.run(words, cwd=WORK, check=False).returncode:
            raise ValueError(f"this command failed: {typed[-1]}")
        cells.append(Cell(read_picture(WORK / output), word))
    if row.detail:
        cells += [Cell(enlarge(cell.image, row.detail), "larger") for cell in cells]
    return "\n".join(typed), sheet(cells, len(cells))


def enlarge(image: Tensor, part: tuple[int, int, int, int]) -> Tensor:
    """A part of the picture, as large as the picture. 3 h w; part: left, top, right, bottom"""
    left, top, right, bottom = part
    return F.interpolate(image[None, :, top:bottom, left:right], image.shape[1:])[0]


def alt_text(row: Row) -> str:
    """What a strip shows, for those who cannot see it."""
    words = [word for _, word in (*row.given, *row.commands)]
    words += ["parts of these, larger"] if row.detail else []
    return ", ".join(words).replace("<", "\\<")


def read_picture(path: str | Path) -> Tensor:
    return from_pil(Image.open(path).convert("RGB"))[0]


def write_report(folder: Path = Path("docs")) -> dict:
    """Renew folder/steering.md, steering.json and the pictures. Returns the figures."""
    path, sd = folder / "steering.md", minisd.load("mini")
    path.read_text(encoding="utf-8")  # before the work: is there a page?
    write_input_pictures(WORK / EXAMPLES)
    computed = {}
    for name, row in ROWS.items():
        commands, picture = strip(name, row)
        file = f"steering-{name}.png"
        save_picture(picture, IMAGES / file, optimize=True)
        shown = f"![{alt_text(row)}](images/{file})"
        computed[name] = f"```bash\n{commands}\n```\n\n{shown}"
    real = batch(Emoji.load(), sd.config.size, COUNT, SEED, step=0, split="heldout")
    guided, picture = classifier_row(sd)
    save_picture(picture, IMAGES / "steering-classifier-things.png", optimize=True)
    scales = ", ".join(map(str, CLASSIFIER_SCALES))
    words = f"Six things, a row for each of the scales {scales}: clearer from row to row"
    computed["classifier things"] = f"![{words}](images/steering-classifier-things.png)"
    figures = {
        "edges": measure_edges(sd, real.images, real.scenes),
        "depth": measure_depth(sd, real.images, real.scenes),
        "outside": measure_outside(real.images, real.scenes, hat_mask()),
        "classifier": guided,
        "word": measure_word(sd),
        "detail": measure_detail(sd, real.images),
    }
    write_text(folder / "steering.json", json.dumps(figures, indent=1) + "\n")
    refill_page(path, computed | tables(figures))
    return figures


def tables(figures: dict) -> dict[str, str]:
    """The computed parts of the page that are no pictures."""
    outside = [[n, f"{v['most']:.0f}", f"{v['mean']:.1f}"] for n, v in figures["outside"].items()]
    simple: dict[str, tuple[str, Callable]] = {
        "edges": ("ControlNet | F1 of the edges", "{:.2f}".format),
        "depth": ("depth channel | correlation of the depths", "{:.2f}".format),
        "classifier": ("scale | the thing is seen", "{:.0%}".format),
        "word": ("the word's file | a fox is seen", "{:.0%}".format),
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
        "outside figures": markdown("model | most of 255 | mean", outside),
        "detail figures": markdown(heads, detail),
    }


if __name__ == "__main__":
    write_report()
