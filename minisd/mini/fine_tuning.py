"""What is taught to the mini once it is trained, each a small file. They too resume.

Without -o the file goes into the run's own folder, as default_output() says.

For minisd.adapters:

minisd train lora -o weights/mini-blueprint.safetensors
minisd train word -o weights/mini-blorp.safetensors
minisd train hypernetwork -o weights/mini-sepia.pt
minisd train controlnet -o weights/mini-edges.safetensors
minisd train controlnet-half -o weights/mini-edges-half.safetensors

And two models that read more channels, for minisd.tasks:

minisd train inpaint -o weights/mini-inpaint.safetensors
minisd train depth -o weights/mini-depth.safetensors

minisd train steering shows what they do, in docs/steering.md; minisd train sizes compares the
mini's 64 pixels with larger pictures, in docs/mini.md.
"""

import json
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

import minisd
from minisd.checkpoints.contents import sha256
from minisd.checkpoints.write import written_whole
from minisd.config import WEIGHTS
from minisd.depth.small import DEPTH_PREFIX
from minisd.files.whole_files import make_folder
from minisd.mini import cats_and_dogs
from minisd.mini.emoji import Emoji
from minisd.mini.recipes import STAGES, VAE_RECIPE, Order, made_by, tokenizer_stage
from minisd.pipeline import StableDiffusion
from minisd.tasks.depth2img import DEPTH_CHANNELS
from minisd.tasks.inpaint import INPAINTING_CHANNELS
from minisd.training import adapters as teach
from minisd.training import depth
from minisd.training import wider_unet as channels
from minisd.training.interrupt import Interrupted
from minisd.training.loop import Recipe
from minisd.training.parallel import place
from minisd.training.run_folder import in_use
from minisd.training.threads import threads_of
from minisd.unet import UNet

SHORT = {"ema": 0.98, "warmup": 20, "save_every": 10, "log_every": 10}
RECIPES = {
    "lora": Recipe(steps=300, rate=0.01, **SHORT),
    "word": Recipe(steps=150, adam_rate=0.05, **SHORT),
    "hypernetwork": Recipe(steps=300, rate=0.02, **SHORT),
    "controlnet": Recipe(steps=1500, rate=0.02, ema=0.99),
    "controlnet-half": Recipe(steps=80, rate=0.02, warmup=10, final=1, ema=0.9),
    "inpaint": Recipe(steps=2500, rate=0.02, ema=0.99),
    "depth": Recipe(steps=1000, rate=0.02, ema=0.99),
    "estimator": Recipe(steps=1000, ema=0.99),
}
WORD, MEANT = "<blorp>", "fox"  # a known thing whose name is withheld
LIKE = ("cat", "dog", "bear", "lion")  # what the word is said to be like
FEW, MANY = 500, 8000  # pictures: a style's or a thing's, and what has to follow all things


def adapter_stage(kind: str, order: Order) -> nn.Module:
    """Teach the shipped mini one thing more, and write it if asked."""
    sd, emoji = minisd.load("mini"), Emoji.load()
    lessons = {
        "lora": {"change": teach.blueprint},
        "word": {
            "only": lambda scene: scene.things == (MEANT,),
            "caption": lambda words: words.replace(MEANT, WORD),
        },
        "hypernetwork": {"change": teach.sepia},
    }
    if kind == "controlnet":
        lesson = teach.edge_lesson(sd, emoji, MANY, order.seed)
    else:
        lesson = teach.make_lesson(sd, emoji, FEW, order.seed, **lessons[kind])
    torch.manual_seed(order.seed)
    begin = {
        "lora": teach.ThinLayers,
        "word": lambda sd: teach.NewWord(sd, WORD, LIKE),
        "hypernetwork": teach.Rewriters,
        "controlnet": teach.copied_controlnet,
    }
    learn = teach.train_controlnet if kind == "controlnet" else teach.train_adapter

    def train_in(recipe: Recipe, folder: Path) -> nn.Module:
        return learn(sd, begin[kind](sd), lesson, folder, recipe, seed=order.seed)

    trained = train_in(order.fitted(RECIPES[kind], kind, train_in), order.folder / kind)
    if order.output:
        trained.save(order.output, {"notes": json.dumps(made_by(kind, order.folder))})
    return trained


def half_stage(order: Order) -> nn.Module:
    """A ControlNet stopped before it follows its hint; only its new parts have begun to learn."""
    sd, emoji, kind = minisd.load("mini"), Emoji.load(), "controlnet-half"
    lesson = teach.edge_lesson(sd, emoji, FEW, order.seed)
    torch.manual_seed(order.seed)

    def train_in(recipe: Recipe, folder: Path) -> nn.Module:
        network = teach.only_new_learns(teach.copied_controlnet(sd))
        return teach.train_controlnet(sd, network, lesson, folder, recipe, seed=order.seed)

    trained = train_in(order.fitted(RECIPES[kind], kind, train_in), order.folder / kind)
    if order.output:
        teach.save_new(order.output, trained, {"notes": json.dumps(made_by(kind, order.folder))})
    return trained


def inpaint_stage(order: Order) -> UNet:
    """Teach the mini to read a mask and what surrounds the hole."""
    put_base_next_to(order.output)
    sd, emoji = minisd.load("mini"), Emoji.load()
    beside = channels.mask_and_surroundings(sd, order.seed)
    trained = wider(sd, emoji, order, "inpaint", INPAINTING_CHANNELS, beside)
    if order.output:
        notes = made_by("inpaint", order.folder)
        channels.save_wider(order.output, sd, trained, "mini-inpaint", notes)
    return trained


def depth_stage(order: Order) -> UNet:
    """Train the estimator of depth, then teach the mini to read what it says."""
    put_base_next_to(order.output)
    sd, emoji = minisd.load("mini"), Emoji.load()

    def train_in(recipe: Recipe, folder: Path) -> nn.Module:
        return depth.train_estimator(emoji, folder, recipe, sd.config.size, seed=order.seed)

    recipe = order.fitted(RECIPES["estimator"], "estimator", train_in)
    estimator = train_in(recipe, order.folder / "estimator").eval().requires_grad_(False)
    beside = channels.estimated_depth(sd, estimator)
    trained = wider(sd, emoji, order, "depth", DEPTH_CHANNELS, beside)
    if order.output:
        notes = made_by("depth", order.folder) | {"estimator": made_by("estimator", order.folder)}
        others = {DEPTH_PREFIX + name: tensor for name, tensor in estimator.state_dict().items()}
        channels.save_wider(order.output, sd, trained, "mini-depth", notes, others)
    return trained


def wider(
    sd: StableDiffusion, emoji: Emoji, order: Order, kind: str, count: int, beside: Callable
) -> UNet:
    """A U-Net of `count` input channels, trained on pictures with what stands beside them."""
    lesson = teach.make_lesson(sd, emoji, MANY, order.seed, beside=beside)

    def train_in(recipe: Recipe, folder: Path) -> UNet:
        unet = channels.widened(sd.unet, count)
        return channels.train_wider(sd, unet, lesson, folder, recipe, seed=order.seed)

    return train_in(order.fitted(RECIPES[kind], kind, train_in), order.folder / kind)


def put_base_next_to(output: Path | None) -> None:
    """Copy the shipped mini next to a file that will hold only what differs from it.

    ValueError: another model of that name is there, and would be taken for it.
    """
    if output is None:
        return
    shipped, base = WEIGHTS / "mini.safetensors", output.with_name("mini.safetensors")
    if base.exists() and sha256(base) != sha256(shipped):
        raise ValueError(
            f"{output} would be read together with {base}, which is not the shipped mini: choose "
            "another folder with -o."
        )
    if not base.exists():
        with written_whole(base) as unfinished:
            shutil.copyfile(shipped, unfinished)
        said = f"{base} is put there, since {output.name} holds only what differs from it."
        warnings.warn(said, stacklevel=2)


def cats_and_dogs_stage(order: Order) -> nn.Module:
    """Train a small model without prompts on latents of the shipped mini's autoencoder."""
    sd, kind = minisd.load("mini"), "cats-and-dogs"
    count = cats_and_dogs.PICTURES
    latents, _ = cats_and_dogs.latent_portraits(sd, Emoji.load(), count, order.seed)

    def train_in(recipe: Recipe, folder: Path) -> nn.Module:
        learn = cats_and_dogs.train_unprompted
        return learn(latents, sd.schedule, folder, recipe, seed=order.seed)

    recipe = order.fitted(cats_and_dogs.RECIPE, kind, train_in)
    trained = train_in(recipe, order.folder / kind)
    if order.output:
        cats_and_dogs.save(order.output, trained, made_by(kind, order.folder))
    return trained


def steering_stage(order: Order) -> dict:
    """Draw with all of them, measure, and renew docs/steering.md."""
    from docs.make import steering_report as steering

    return steering.write(order.output or Path("docs"))


def sizes_stage(order: Order) -> list[list[str]]:
    """Train autoencoders of three picture sizes for equal minutes; renew docs/mini.md."""
    from docs.make import size_report as sizes

    page = (order.output or Path("docs")) / "mini.md"
    minutes = 6 if order.minutes is None else order.minutes
    return sizes.write(page, tokenizer_stage(order), minutes, order.folder / "sizes", VAE_RECIPE)


ALL_STAGES = {
    **STAGES,
    **{kind: partial(adapter_stage, kind) for kind in list(RECIPES)[:4]},
    "controlnet-half": half_stage,
    "inpaint": inpaint_stage,
    "depth": depth_stage,
    "cats-and-dogs": cats_and_dogs_stage,
    "steering": steering_stage,
    "sizes": sizes_stage,
}
ONE_PROCESS = ("evaluate", "steering")  # stages in which processes share no work
WITHOUT_RUN = (*ONE_PROCESS, "tokenizer", "export", "sizes")  # sizes has one for each size
BEGINS_WITH = {"depth": "estimator"}  # the run of a stage that has more than one


def default_output(stage: str, folder: Path) -> Path:
    """Where a stage's file goes: into the run's own folder, where no other run writes."""
    if stage == "export":
        return folder / "mini.safetensors"
    return folder / stage / (stage + (".pt" if stage == "hypernetwork" else ".safetensors"))


def with_output(stage: str, order: Order) -> Order:
    """The order with a file to write: the one that it names, else the default, its folder made."""
    if order.output is None:
        order = replace(order, output=default_output(stage, order.folder))
        make_folder(order.output.parent)
    return order


def carry_out(stage: str, order: Order) -> None:
    """Do one stage with the threads that its run began with; the first process writes the file.

    ValueError: another training is at work in the stage's folder. Interrupted: by ctrl-C, SIGTERM
    or SIGHUP, also while no step is being trained.
    """
    run = order.folder / BEGINS_WITH.get(stage, stage)
    if stage in ONE_PROCESS and place()[0] > 0:
        return
    own = order if place()[0] == 0 or stage in WITHOUT_RUN else replace(order, output=None)
    alone = nullcontext() if stage in WITHOUT_RUN else in_use(order.folder / stage)
    try:
        with alone, threads_of(run):
            ALL_STAGES[stage](own)
    except KeyboardInterrupt as stop:
        if str(stop) or stage in WITHOUT_RUN:  # the training has saved, and said so
            raise
        number = getattr(stop, "number", signal.SIGINT)
        raise Interrupted(where_it_goes_on(run), number) from None


def where_it_goes_on(run: Path) -> str:
    """The sentence for a stage that was stopped while it trained no step, or amid one."""
    if (run / "state.pt").exists():
        kept = f"stopped; the last checkpoint in {run} is kept: give the same command again"
        return f"{kept} to go on from there."
    return "stopped before the first checkpoint: give the same command again to start over."
