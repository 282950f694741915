"""docs/steering.md: every way to steer the mini, as commands with what they draw, and in figures.

The pictures are made by the very commands that the page shows, run from the repository's root.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from numpy.random import default_rng
from PIL import Image, ImageDraw
from torch import Tensor

import minisd
from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.textual_inversion import textual_inversion
from minisd.config import WEIGHTS
from minisd.guidance import classifier_guided
from minisd.pipeline import StableDiffusion, from_pil, to_pil
from minisd.samplers import from_noise, sampler_levels
from minisd.tasks.depth2img import depth2img_steps
from minisd.tasks.depth_small import load_estimator
from minisd.tasks.edges import canny
from minisd.tasks.img2img import img2img_steps
from minisd.tasks.inpaint import as_mask, inpaint
from minisd.training import classifier, judge
from minisd.training.captions import Scene, brief_caption
from minisd.training.data import Emoji, batch, compose, to_tensor
from minisd.training.evaluate import STEPS, draw_prompts, examine
from minisd.training.sheets import Cell, markdown, refilled, sheet

SEED, COUNT = 3, 64
CLASSIFIER_SCALES = (0, 2, 8, 32)
WORK = Path("runs/steering")  # the commands' pictures; the page shows them side by side
IMAGES = Path("docs/images")


@dataclass(frozen=True)
class Row:
    """One strip of the page: what was given, then what each command drew, with a word on each."""

    given: tuple[tuple[str, str], ...]  # (file, word)
    commands: tuple[tuple[str, str], ...]  # (command without its -o, word)


def strength_row(prompt: str, picture: str) -> Row:
    command = f'minisd img2img "{prompt}" docs/images/{picture}.png --seed 1 --strength'
    strengths = (0.25, 0.5, 0.75, 1)
    given = ((f"docs/images/{picture}.png", "given"),)
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
        (("docs/images/santa.png", "given"), ("docs/images/hat-mask.png", "mask")),
        tuple(
            (
                f'minisd inpaint "a santa on a cyan background" docs/images/santa.png '
                f"docs/images/hat-mask.png --model {model} --seed {seed} --paste",
                f"{model}, seed {seed}",
            )
            for model in ("mini", "mini-inpaint")
            for seed in (1, 2)
        ),
    ),
    "depth": led_row(
        (("docs/images/pair.png", "given"),),
        'depth "{}" docs/images/pair.png --model mini-depth --strength 1',
        'img2img "{}" docs/images/pair.png --strength 1',
        (
            "a lemon on a pink background",
            "a flat panda on a green background",
            "a rocket on a blue background",
        ),
    ),
    "control": led_row(
        (("docs/images/dog.png", "given"), ("docs/images/dog-edges.png", "its edges")),
        'control "{}" weights/mini-edges.safetensors docs/images/dog-edges.png',
        'generate "{}"',
        (
            "a green dog on a white background",
            "a pink dog on a black background",
            "a purple dog on a yellow background",
        ),
    ),
    "lora": scale_row(CAT, "--lora weights/mini-blueprint.safetensors:{}", (0, 0.5, 1)),
    "hypernetwork": scale_row(CAT, "--hypernetwork weights/mini-sepia.pt:{}", (0, 0.5, 1)),
    "word": Row(
        (),
        tuple(
            (f'minisd generate "{prompt}" --embedding weights/mini-blorp.safetensors', prompt)
            for prompt in (
                "a <blorp> on a green background",
                "a blue <blorp> on a white background",
                "a small glossy <blorp> on the left on a red background",
            )
        ),
    ),
    "scale": scale_row(CAT, "--scale {}", (0, 1, 2, 3, 5, 7.5, 15)),
    "vae": Row(
        (),
        tuple(
            (f'minisd generate "a lion on a blue background" --seed 4{more}', word)
            for more, word in (
                ("", "the mini's decoder"),
                (" --vae weights/mini-decoder.safetensors", "fine-tuned"),
            )
        ),
    ),
}


def crude_apple() -> Image.Image:
    """A drawing as made in a minute by someone who cannot draw."""
    picture = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((13, 18, 51, 57), fill=(90, 190, 60))
    pen.line((32, 20, 36, 8), fill=(110, 70, 30), width=3)
    return picture


def hat_mask(size: int = 64) -> Image.Image:
    """White over the upper part, where a hat is."""
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rectangle((4, 2, size - 5, 25), fill=255)
    return mask


def given_pictures(sd: StableDiffusion) -> None:
    """Draw what the commands are given."""
    WORK.mkdir(parents=True, exist_ok=True)
    crude_apple().save(IMAGES / "crude-apple.png")
    hat_mask().save(IMAGES / "hat-mask.png")
    emoji = Emoji.load()
    for name, scene in (
        ("santa", Scene(("santa",), (None,), "noto", "cyan")),
        ("pair", Scene(("cat", "dog"), (None, None), "noto", "white")),
        ("dog", Scene(("dog",), (None,), "glossy", "white")),
    ):
        picture, _ = compose(emoji, scene, sd.config.size, default_rng(1))
        to_pil(to_tensor([picture]))[0].save(IMAGES / f"{name}.png")
    edges = canny(opened(IMAGES / "dog.png")[None])
    to_pil(edges * 2 - 1)[0].save(IMAGES / "dog-edges.png")


def strip(name: str, row: Row) -> tuple[str, Image.Image]:
    """Run a row's commands. Returns them as they are to be typed, and their pictures in a row."""
    cells = [Cell(opened(path), word) for path, word in row.given]
    typed = []
    for number, (command, word) in enumerate(row.commands):
        output = WORK / f"{name}-{number}.png"
        typed.append(f"{command} -o {output.as_posix()}")
        if subprocess.run([sys.executable, "-m", *shlex.split(typed[-1])], check=False).returncode:
            raise ValueError(f"this command failed: {typed[-1]}")
        cells.append(Cell(opened(output), word))
    return "\n".join(typed), sheet(cells, len(cells))


def described(row: Row) -> str:
    """What a strip shows, for those who cannot see it."""
    return ", ".join(word for _, word in (*row.given, *row.commands)).replace("<", "\\<")


def opened(path: str | Path) -> Tensor:
    return from_pil(Image.open(path).convert("RGB"))[0]


# ---- figures ----------------------------------------------------------------------------------


def edge_agreement(found: Tensor, wanted: Tensor) -> float:
    """F1 of edge pixels that lie within one pixel of the other's. b 3 h w each, 0 or 1."""
    near_found, near_wanted = (F.max_pool2d(one, 3, 1, 1) for one in (found, wanted))
    precision = (found * near_wanted).sum() / found.sum().clamp(min=1)
    recall = (wanted * near_found).sum() / wanted.sum().clamp(min=1)
    return (2 * precision * recall / (precision + recall).clamp(min=1e-9)).item()


def correlation(a: Tensor, b: Tensor) -> float:
    """The mean over pictures of how their depths go together. b 1 h w each"""
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return torch.stack([torch.stack(pair).corrcoef()[0, 1] for pair in pairs]).mean().item()


@torch.no_grad()
def edges_kept(sd: StableDiffusion, real: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Edge agreement of what is drawn with the real picture's edges, with the ControlNet and not.

    The prompts are brief: one that names the style tells the mini's few drawings apart by itself.
    What went through the autoencoder is about the most that a drawing of the mini can reach.

    real: b 3 h w
    """
    hint, prompts = canny(real), [brief_caption(scene) for scene in scenes]

    def agreement() -> float:
        return edge_agreement(canny(draw_prompts(sd, prompts, sd.config.cfg_scale)), hint)

    found = {"without": agreement()}
    with control(sd, ControlNet.load(WEIGHTS / "mini-edges.safetensors"), hint):
        found["with"] = agreement()
    through = sd.decode(sd.encode(real)).clamp(-1, 1)
    return found | {"the autoencoder alone": edge_agreement(canny(through), hint)}


@torch.no_grad()
def depth_kept(sd: StableDiffusion, real: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Correlation of the depth of what is drawn with the real picture's, with its channel and not.

    Image-to-image at strength 1 in both, and prompts without style and place: hardly anything but
    the channel tells how the picture is laid out.
    """
    wide = minisd.load("mini-depth")
    estimate = load_estimator(WEIGHTS / "mini-depth.safetensors")
    truth, prompts = estimate(real), [brief_caption(replace(one, spot=None)) for one in scenes]
    settings = {"strength": 1.0, "steps": STEPS, "seed": list(range(len(prompts)))}
    *_, led = depth2img_steps(wide, prompts, real, truth, **settings)
    *_, free = img2img_steps(sd, prompts, real, **settings)
    drawn = {"with": wide.decode(led.x), "without": sd.decode(free.x)}
    return {name: correlation(estimate(image), truth) for name, image in drawn.items()}


def outside_kept(real: Tensor, scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """How far pixels outside the mask are from the given ones, of 255: the most, and on average."""
    found: dict = {}
    mask, prompts = hat_mask(), [brief_caption(scene) for scene in scenes[:8]]
    kept = as_mask(mask, real)[0, 0] < 0.5
    for model in ("mini", "mini-inpaint"):
        sd = minisd.load(model)
        for paste in (False, True):
            drawn = inpaint(sd, prompts, real[:8], mask, steps=STEPS, paste=paste, seed=1)
            apart = torch.cat([from_pil(one) for one in drawn]) - real[:8]
            apart = 127.5 * apart.abs()[:, :, kept]
            name = f"{model}, {'pasted' if paste else 'as drawn'}"
            found[name] = {"most": apart.max().item(), "mean": apart.mean().item()}
    return found


@torch.no_grad()
def classifier_draw(
    sd: StableDiffusion, guide: classifier.LatentClassifier, things: list[str], scale: float
) -> Tensor:
    """Pictures without any prompt, led by the classifier alone: one of each thing. b 3 h w"""
    classes = torch.tensor([guide.config.things.index(thing) for thing in things])

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return F.log_softmax(guide(x, t), dim=1)[torch.arange(len(x)), classes]

    generators = [torch.Generator().manual_seed(i) for i in range(len(things))]
    denoise = classifier_guided(sd.denoiser([""] * len(things), cfg_scale=1), log_prob, scale)
    levels = sampler_levels("ddim", sd.schedule, STEPS)
    *_, step = from_noise("ddim", denoise, sd.noise(generators, None, None), levels, generators)
    return sd.decode(step.x).clamp(-1, 1)


def classifier_row(sd: StableDiffusion) -> tuple[dict[str, float], Image.Image]:
    """How often the judge sees the thing that the classifier led to; some of the pictures."""
    guide = classifier.load(WEIGHTS / "mini-classifier.safetensors")
    things = list(guide.config.things)[:: len(guide.config.things) // COUNT or 1][:COUNT]
    scenes = [Scene((thing,), (None,), "noto", "white") for thing in things]
    seer, found, cells = judge.load(), {}, []
    for scale in CLASSIFIER_SCALES:
        images = classifier_draw(sd, guide, things, scale)
        seen = examine(seer, images, scenes)
        found[f"{scale:g}"] = sum(one.right["thing"][0] for one in seen) / len(seen)
        cells += [Cell(images[i], f"{things[i]}, scale {scale:g}") for i in range(6)]
    return found, sheet(cells, 6)


def word_known(sd: StableDiffusion) -> dict[str, float]:
    """How often the judge sees a fox where the prompt says <blorp>, with the word and without."""
    colours = ("red", "green", "blue", "white", "yellow", "pink")
    prompts = [f"a <blorp> on a {colour} background" for colour in colours for _ in range(4)]
    scenes = [Scene(("fox",), (None,), "noto", "white")] * len(prompts)
    seer, found = judge.load(), {}

    def share() -> float:
        seen = examine(seer, draw_prompts(sd, prompts, sd.config.cfg_scale), scenes)
        return sum(one.right["thing"][0] for one in seen) / len(seen)

    found["without"] = share()
    with textual_inversion(sd, WEIGHTS / "mini-blorp.safetensors"):
        found["with"] = share()
    return found


def write(folder: Path = Path("docs")) -> dict:
    """Renew folder/steering.md, steering.json and the pictures. Returns the figures."""
    path, sd = folder / "steering.md", minisd.load("mini")
    page = path.read_text(encoding="utf-8")
    given_pictures(sd)
    computed = {}
    for name, row in ROWS.items():
        commands, picture = strip(name, row)
        picture.save(IMAGES / f"steering-{name}.png", optimize=True)
        shown = f"![{described(row)}](images/steering-{name}.png)"
        computed[name] = f"```bash\n{commands}\n```\n\n{shown}"
    real = batch(Emoji.load(), sd.config.size, COUNT, SEED, step=0, split="heldout")
    guided, picture = classifier_row(sd)
    picture.save(IMAGES / "steering-classifier.png", optimize=True)
    scales = ", ".join(map(str, CLASSIFIER_SCALES))
    words = f"Six things, a row for each of the scales {scales}: clearer from row to row"
    computed["classifier"] = f"![{words}](images/steering-classifier.png)"
    figures = {
        "edges": edges_kept(sd, real.images, real.scenes),
        "depth": depth_kept(sd, real.images, real.scenes),
        "outside": outside_kept(real.images, real.scenes),
        "classifier": guided,
        "word": word_known(sd),
    }
    (folder / "steering.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    path.write_text(refilled(page, computed | tables(figures)), encoding="utf-8")
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
    return made | {"outside figures": markdown("model | most of 255 | mean", outside)}
