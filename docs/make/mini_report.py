"""Write the figures and pictures of docs/mini.md: what evaluate() found.

The text of that page is written by hand. This program computes the parts between "<!-- name -->"
and "<!-- end -->".
"""

import json
import re
import textwrap
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from numpy.random import default_rng
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

import minisd
from minisd.checkpoints.load import load_vae
from minisd.config import MINI, WEIGHTS
from minisd.files.pictures import to_pil
from minisd.files.whole_files import make_folder, save_picture, write_text
from minisd.mini.agreement import nearest_pictures
from minisd.mini.captions import Scene, full_caption
from minisd.mini.emoji import Emoji
from minisd.mini.evaluate import ASPECTS, Judged, evaluate, row_name
from minisd.mini.judge import Judge, load_judge
from minisd.mini.scenes import compose_scene, to_tensor
from minisd.pipeline import StableDiffusion
from minisd.teaching.picture_grid import paste_grid
from minisd.vae import VAE

GREEN, RED, WHITE = (40, 160, 60), (215, 35, 40), (255, 255, 255)
FRAME, GAP = 4, 8  # px
LETTERS, LINES, LINE = 26, 7, 12  # words under a picture: letters a line, lines, px a line

# The targets for the mini: the share of held-out pictures at the default scale.
WANTED = {"background": 0.99, "thing": 0.90, "style": 0.90, "tint": 0.80}


class Cell(NamedTuple):
    """One picture of a sheet: 3 h w in [-1, 1], the words below it, the colour of its frame."""

    image: Tensor
    words: str
    frame: tuple[int, int, int] = WHITE


def sheet(cells: list[Cell], columns: int) -> Image.Image:
    """The pictures in rows, at twice their size, framed, with words below."""
    size = 2 * cells[0].image.shape[-1]
    framed = [
        ImageOps.expand(
            to_pil(cell.image[None])[0].resize((size, size), Image.Resampling.NEAREST),
            border=FRAME,
            fill=cell.frame,
        )
        for cell in cells
    ]
    words = [
        [line for part in cell.words.split("\n") for line in textwrap.wrap(part, LETTERS)][:LINES]
        for cell in cells
    ]
    page, places = paste_grid(framed, columns, GAP, below=max(map(len, words)) * LINE)
    pen = ImageDraw.Draw(page)
    for lines, (left, top) in zip(words, places, strict=True):
        under = top + size + 2 * FRAME
        for number, line in enumerate(lines):
            pen.text((left + FRAME, under + number * LINE), line, fill=(0, 0, 0))
    return page


def describe_seen(judged: Judged) -> str:
    """What the judge saw, in words; tints where they were asked for."""
    things = [
        " ".join([seen.style, *([seen.tint] if tint else []), seen.thing])
        for seen, tint in zip(judged.seen, judged.scene.tints, strict=True)
    ]
    return f"{' | '.join(things)} on {judged.background}"


def sheets(
    rows: dict[str, list[Judged]], drawn: list[Judged], emoji: Emoji, neighbours: int
) -> dict[str, Image.Image]:
    """All sheets by name. rows: held-out pictures, by scale    drawn: those at the default scale"""
    samples = [
        Cell(one.image, full_caption(one.scene), GREEN if one.is_right else RED)
        for one in drawn[:64]
    ]
    wrong = [
        Cell(one.image, f"{full_caption(one.scene)}\nSEEN: {describe_seen(one)}", RED)
        for one in drawn
        if not one.is_right
    ]
    first = torch.stack([one.image for one in drawn[:8]])
    trained = [
        Cell(image, f"{full_caption(scene)}\n{distance:.0f} of 255 away")
        for distance, image, scene in nearest_pictures(first, emoji, neighbours)
    ]
    scales = [name for name in rows if name.startswith("scale")]
    strip = [
        Cell(one.image, f"{full_caption(one.scene)}\n{name}")
        # some scales may have fewer than four pictures
        for same in zip(*(rows[name][:4] for name in scales), strict=False)
        for name, one in zip(scales, same, strict=True)
    ]
    made = {
        "samples": sheet(samples, 8),
        "nearest": sheet([*samples[:8], *trained], len(first)),
        "scales": sheet(strip, len(scales)),
    }
    return made | ({"failures": sheet(wrong[:32], 8)} if wrong else {})


FINE = (  # things with fine detail, each with a style
    ("cat", "noto"),
    ("cat", "twemoji"),
    ("tiger", "glossy"),
    ("strawberry", "twemoji"),
    ("watermelon", "flat"),
    ("maple leaf", "noto"),
    ("butterfly", "noto"),
    ("sunflower", "glossy"),
    ("owl", "noto"),
)


@torch.no_grad()
def through_autoencoders(sd: StableDiffusion, tuned: VAE | None, emoji: Emoji) -> Image.Image:
    """Real pictures, and below each the same picture as one or two decoders draw it."""
    scenes = [Scene((thing,), (None,), style, "cyan") for thing, style in FINE]
    composed = [compose_scene(emoji, scene, sd.config.size, default_rng(1))[0] for scene in scenes]
    real = to_tensor(composed)
    latents = sd.encode(real)
    rows = {"real": real, "own decoder": sd.decode(latents)}
    if tuned:
        rows["fine-tuned"] = tuned.decode(latents / sd.config.vae.scale)
    cells = [
        Cell(image.clamp(-1, 1), f"{style} {thing}: {name}")
        for name, images in rows.items()
        for image, (thing, style) in zip(images, FINE, strict=True)
    ]
    return sheet(cells, len(FINE))


# The computed parts of the page


def markdown(head: str, rows: list[list[str]]) -> str:
    """A table. head: its columns, with | between them."""
    lines = [head, re.sub(r"[^|]+", "---", head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def format_number(number: float | None) -> str:
    """The number with three digits, or "-" for None."""
    return "-" if number is None else f"{number:.3g}"


def targets(figures: dict) -> list[tuple[str, str, float, float | None]]:
    """The targets for the mini: what is measured, at least or at most, the bound, the result."""
    right = figures["right"]["heldout"][row_name(figures["settings"]["cfg_scale"])]
    attention, psnr, seconds = figures["attention"], figures["psnr"], figures["seconds"]
    behind = {role: less for role, less in attention["behind"].items() if role != "thing"}
    next_role = min(behind, key=lambda role: behind[role])
    gap = figures["synonyms"]["contexts less their mean"]["gap"]
    return [
        ("dB of held-out pictures after encoding and decoding", "≥", 27, psnr["model"]),
        ("the same with the fine-tuned decoder", "≥", 29, psnr.get("fine-tuned")),
        (
            "share of real held-out pictures in which the judge sees the right thing",
            "≥",
            0.97,
            figures["judge"]["thing"],
        ),
        *(
            (f"share of drawn pictures with the right {name}", "≥", share, right.get(name))
            for name, share in WANTED.items()
        ),
        (
            "overlap of the map of the thing's word with the thing",
            "≥",
            0.4,
            attention["overlap"]["thing"],
        ),
        (f"how much more this is than for the next word, {next_role}", "≥", 0, behind[next_role]),
        ("how much closer synonyms are than other words (cosine)", "≥", 0.3, gap),
        ("seconds for one picture", "≤", 1.5, seconds["alone"]),
        ("seconds per picture, 16 at once", "≤", 0.5, seconds["of 16"]),
        ("MB of mini.safetensors", "≤", 25, figures["megabytes"]["mini"]),
        ("MB of weights/", "≤", 60, figures["megabytes"]["all weights"]),
    ]


def target_status(sign: str, bound: float, found: float | None) -> str:
    if found is None:
        return "not measured"
    return "yes" if (found >= bound if sign == "≥" else found <= bound) else "**no**"


def rightness(rows: dict[str, dict[str, float]]) -> str:
    """The table of one split: % right per aspect, for real pictures and for each scale."""
    cells = [
        [name, str(row["pictures"])]
        + [format_number(100 * row[aspect] if aspect in row else None) for aspect in ASPECTS]
        for name, row in rows.items()
    ]
    return markdown(f"pictures | number | {' | '.join(ASPECTS)}", cells)


def confusions(drawn: list[Judged], count: int = 10) -> list[str]:
    """The things that were most often mistaken for others: "tomato (5 of 9: apple 4, pear 1)"."""
    asked = Counter(thing for one in drawn for thing in one.scene.things)
    wrong: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in drawn:
        for thing, seen in zip(one.scene.things, one.seen, strict=True):
            if seen.thing != thing:
                wrong[thing][seen.thing] += 1
    found = []
    for thing in sorted(wrong, key=lambda thing: -wrong[thing].total())[:count]:
        taken = ", ".join(f"{other} {times}" for other, times in wrong[thing].most_common(3))
        found.append(f"{thing} ({wrong[thing].total()} of {asked[thing]}: {taken})")
    return found


def failures(drawn: list[Judged]) -> str:
    """A text: how many pictures have a mistake, of which kind, and in which things."""
    bad = sum(not one.is_right for one in drawn)
    wrong = {aspect: sum(not all(one.right[aspect]) for one in drawn) for aspect in ASPECTS[:4]}
    kinds = ", ".join(f"the {aspect} in {times}" for aspect, times in wrong.items())
    names = "; ".join(confusions(drawn)) or "none"
    return (
        f"Of {len(drawn)} held-out pictures at the default scale, {bad} have a mistake: {kinds}. "
        f"The judge takes these things for others most often: {names}."
    )


def attention_table(attention: dict[str, dict[str, float]]) -> str:
    """The table of the word maps. The role that gets the most attention comes first."""
    shares, overlaps, behind = attention["share"], attention["overlap"], attention["behind"]
    rows = [
        [
            role,
            format_number(100 * shares[role]),
            format_number(overlaps[role]),
            format_number(behind[role]),
        ]
        for role in sorted(shares, key=lambda role: shares[role], reverse=True)
    ]
    rows.append(["places at random", "-", format_number(overlaps["by chance"]), "-"])
    return markdown("word | % of the attention | overlap with the thing | behind", rows)


PARTS = ("settings", "targets", "heldout", "train", "failures", "attention", "synonyms")


def parts(figures: dict, drawn: list[Judged]) -> dict[str, str]:
    """All computed parts by name."""
    holding = [
        [what, f"{sign} {bound:g}", format_number(found), target_status(sign, bound, found)]
        for what, sign, bound, found in targets(figures)
    ]
    words = [[name, *map(format_number, row.values())] for name, row in figures["synonyms"].items()]
    settings = (f"{name} {value:g}" for name, value in figures["settings"].items())
    return {
        "settings": f"Settings: {', '.join(settings)}.",
        "targets": markdown("what | target | result | met", holding),
        "heldout": rightness(figures["right"]["heldout"]),
        "train": rightness(figures["right"]["train"]),
        "failures": failures(drawn),
        "attention": attention_table(figures["attention"]),
        "synonyms": markdown("vectors | synonyms | different things | gap", words),
    }


def fill_parts(page: str, computed: dict[str, str]) -> str:
    """The page with each part replaced.

    Raises ValueError if the page has no place for a part.
    """
    for name, text in computed.items():
        opening = f"<!-- {name} -->\n"
        before, found, rest = page.partition(opening)
        _, end, after = rest.partition("<!-- end -->")
        if not (found and end):
            raise ValueError(
                f"The page has no place for the computed part {name!r}. Write the line "
                f"{opening.strip()} there, and below it the line <!-- end -->."
            )
        page = f"{before}{found}\n{text}\n\n{end}{after}"
    return page


def refill_page(path: Path, computed: dict[str, str]) -> None:
    """Write the computed parts into the page as it is now. It may have changed in the meantime."""
    write_text(path, fill_parts(path.read_text(encoding="utf-8"), computed))


def write_report(
    folder: Path,
    sd: StableDiffusion,
    judge: Judge,
    emoji: Emoji,
    count: int = 1000,
    others: int = 250,
    fine_tuned: VAE | None = None,
    neighbours: int = 10_000,
) -> dict:
    """Evaluate, and rewrite folder/mini.md, mini.json and images/mini-….png. Returns the figures.

    neighbours: among how many training pictures to look for the nearest
    """
    path = folder / "mini.md"
    # fails before the long work if a part has no place
    fill_parts(path.read_text(encoding="utf-8"), dict.fromkeys(PARTS, ""))
    figures, judged = evaluate(sd, judge, emoji, count, others, fine_tuned)
    figures["settings"]["training pictures compared"] = neighbours
    write_text(folder / "mini.json", json.dumps(figures, indent=1) + "\n")
    drawn = judged["heldout"][row_name(sd.config.cfg_scale)]
    make_folder(folder / "images")
    for name, picture in sheets(judged["heldout"], drawn, emoji, neighbours).items():
        save_picture(picture, folder / "images" / f"mini-{name}.png", optimize=True)
    picture = through_autoencoders(sd, fine_tuned, emoji)
    save_picture(picture, folder / "images" / "mini-autoencoder.png", optimize=True)
    refill_page(path, parts(figures, drawn))
    return figures


if __name__ == "__main__":
    tuned = load_vae(WEIGHTS / "mini-decoder.safetensors", MINI.vae)
    write_report(Path("docs"), minisd.load("mini"), load_judge(), Emoji.load(), fine_tuned=tuned)
