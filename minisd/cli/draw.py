"""The commands that draw: from a prompt alone, or with a picture, a mask, a depth, a hint."""

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from minisd.cli.pictures import (
    fitting,
    open_picture,
    output_paths,
    progress_bar,
    say_resized,
    side_by_side,
    strip_path,
    write_png,
)


def add_common(command: argparse.ArgumentParser) -> None:
    """What every drawing command takes."""
    add = command.add_argument
    add("prompt", help='such as "a cat on a blue background"')
    add("-o", "--output", type=Path, default=Path("picture.png"), help="a PNG (picture.png)")
    add("--model", default="mini", help="FILE, FOLDER or NAME of a model (mini)")
    add("--negative", default="", metavar="PROMPT", help="what to steer away from")
    add("--steps", type=int, default=30, help="1 to 1000 (30); few want --spacing trailing")
    add("--scale", type=float, help="how strongly the prompt steers (the model's own)")
    add("--sampler", help="ddim, euler, dpmpp_2m, … (the model's own)")
    add("--spacing", help="of the noise levels: leading, trailing, karras, … (the sampler's own)")
    add("--seed", type=int, default=0, help="of the first picture; the next use seed + 1, … (0)")
    add("-n", "--number", type=int, default=1, help="how many pictures (1)")
    add("--prediction", choices=("eps", "v"), help="where the model's file cannot say it")
    add("--device", default="cpu", help="cpu, cuda or mps (cpu)")
    more = command.add_argument_group("adapters (each may be given several times)").add_argument
    more("--lora", action="append", default=[], metavar="FILE[:SCALE]")
    more("--embedding", action="append", default=[], metavar="FILE", help="its word: in the prompt")
    more("--hypernetwork", action="append", default=[], metavar="FILE[:STRENGTH]")
    more("--vae", action="append", default=[], metavar="FILE")
    more("--control", action="append", default=[], metavar="FILE:HINT[:SCALE]")
    more("--edges", action="store_true", help="the hints are pictures whose edges to follow")
    more("--classifier", action="append", default=[], metavar="FILE:THING[:SCALE]")


def add_size(command: argparse.ArgumentParser, picture: bool = False) -> None:
    """picture: where one is given, these resize it."""
    own = "the picture's own, made to fit" if picture else "the model's own"
    command.add_argument("--width", type=int, help=f"in pixels ({own})")
    command.add_argument("--height", type=int, help=f"in pixels ({own})")


def add_generate(command: argparse.ArgumentParser) -> None:
    add_common(command)
    add_size(command)
    add = command.add_argument
    add("--extended", action="store_true", help="read (word:1.2) weights and long prompts")
    add("--clip-skip", type=int, default=0, help="text layers to leave out at the end (0)")
    add("--every-step", action="store_true", help="also write the guess of every step, as a strip")
    command.set_defaults(run=generate)


def add_img2img(command: argparse.ArgumentParser) -> None:
    add_common(command)
    add_size(command, picture=True)
    command.add_argument("image", type=Path, help="the picture to begin with")
    command.add_argument("--strength", type=float, default=0.75, help="0 keeps it, 1 forgets (.75)")
    command.set_defaults(run=img2img)


def add_inpaint(command: argparse.ArgumentParser) -> None:
    add_common(command)
    add_size(command, picture=True)
    add = command.add_argument
    add("image", type=Path, help="the picture")
    add("mask", type=Path, help="a picture of the same size: white is drawn anew")
    add("--strength", type=float, default=1.0, help="below 1, what was there shows through (1)")
    add("--paste", action="store_true", help="put the original pixels back outside the mask")
    command.set_defaults(run=inpaint)


def add_depth(command: argparse.ArgumentParser) -> None:
    add_common(command)
    add_size(command, picture=True)
    add = command.add_argument
    add("image", type=Path, help="the picture")
    add("--depth", type=Path, help="its depth as a grey picture, near is bright (estimated)")
    add("--estimator", metavar="FILE", help="of depth (the one in the model's file)")
    add("--strength", type=float, default=0.8, help="0 keeps the picture, 1 its depth alone (.8)")
    command.set_defaults(run=depth)


def add_control(command: argparse.ArgumentParser) -> None:
    add_common(command)
    add_size(command)
    add = command.add_argument
    add("network", metavar="FILE", help="the ControlNet")
    add("hint", help="a picture of what it was trained to follow: edges, a pose, …")
    add("--weight", type=float, default=1.0, help="how closely to follow (1)")
    command.set_defaults(run=control)


# ---- running ---------------------------------------------------------------------------------


def generate(options: argparse.Namespace) -> None:
    """Draw the pictures one by one and write each, its settings inside."""
    outputs = output_paths(options.output, options.number, options.every_step)
    from minisd.pipeline import to_pil

    sd = load(options)
    settings = common_settings(sd, options) | {
        "width": sd.config.size if options.width is None else options.width,
        "height": sd.config.size if options.height is None else options.height,
        "clip_skip": options.clip_skip,
        "extended": options.extended,
    }
    adapt(sd, options, (settings["width"], settings["height"]))
    for seed, path in enumerate(outputs, start=options.seed):
        guesses = []
        for step in progress_bar(sd.txt2img_steps(options.prompt, seed=seed, **settings), options):
            if options.every_step:
                guesses += to_pil(sd.decode(step.prediction.x0))
        about = told(options, seed, settings)
        write_png(to_pil(sd.decode(step.x))[0], path, about)
        if guesses:
            write_png(side_by_side(guesses), strip_path(path), about)


def control(options: argparse.Namespace) -> None:
    """As generate, with one more ControlNet."""
    options.control = [f"{options.network}:{options.hint}:{options.weight}", *options.control]
    options.extended, options.clip_skip, options.every_step = False, 0, False
    generate(options)


def img2img(options: argparse.Namespace) -> None:
    from minisd.tasks.img2img import img2img

    draw_from_picture(options, img2img, strength=options.strength)


def inpaint(options: argparse.Namespace) -> None:
    from minisd.tasks.inpaint import inpaint

    more = {"strength": options.strength, "paste": options.paste}
    draw_from_picture(options, inpaint, mask=options.mask, **more)


def depth(options: argparse.Namespace) -> None:
    from minisd.checkpoints.load import locate
    from minisd.tasks.depth2img import Estimator, depth2img
    from minisd.tasks.depth_small import load_estimator

    @cache
    def network() -> Estimator:
        """Read once, when it is needed: after all else is known to be in order."""
        source = Path(options.estimator or locate(options.model))
        inside = source / "depth_estimator" / "model.safetensors"  # of a diffusers folder
        return load_estimator(inside if inside.exists() else source)

    if options.depth and options.estimator:
        raise ValueError("--depth and --estimator exclude each other: give one of them.")
    given = (
        {"depth": options.depth} if options.depth else {"estimator": lambda image: network()(image)}
    )
    draw_from_picture(options, depth2img, strength=options.strength, **given)


def draw_from_picture(options: argparse.Namespace, task: Callable, **more: object) -> None:
    """Run a task on the picture, once per seed. Paths among `more` are pictures to be opened."""
    from minisd.pictures import colours, mask_shades
    from minisd.pipeline import size_step

    outputs = output_paths(options.output, options.number, every_step=False)
    image = open_picture(options.image)
    beside = {name: open_picture(path) for name, path in more.items() if isinstance(path, Path)}
    if "mask" in beside and beside["mask"].size != image.size:
        raise ValueError(
            f"the mask is {beside['mask'].size} pixels and the picture {image.size}: give a mask "
            "of the picture's size."
        )
    sd = load(options)
    size = fitting(image.size, options, size_step(sd.config))
    image = image if image.size == size else colours(image).resize(size)
    if "mask" in beside:
        beside["mask"] = mask_shades(beside["mask"]).resize(size)
    settings = common_settings(sd, options)
    adapt(sd, options, size)
    for seed, path in enumerate(outputs, start=options.seed):
        shown = sys.stderr.isatty()
        drawn = task(
            sd, options.prompt, image, seed=seed, progress=shown, **{**more, **beside}, **settings
        )
        strings = {name: str(value) for name, value in more.items() if name != "estimator"}
        about = told(options, seed, settings) | strings | {"image": str(options.image)}
        write_png(drawn, path, about)


def load(options: argparse.Namespace):
    import minisd

    return minisd.load(options.model, device=options.device, prediction=options.prediction)


def common_settings(sd, options: argparse.Namespace) -> dict:
    return {
        "negative_prompt": options.negative,
        "steps": options.steps,
        "cfg_scale": sd.config.cfg_scale if options.scale is None else options.scale,
        "sampler": options.sampler or sd.config.sampler,
        "spacing": options.spacing,
    }


def told(options: argparse.Namespace, seed: int, settings: dict) -> dict:
    """What the picture's file says of how it was made."""
    names = ("lora", "embedding", "hypernetwork", "vae", "control", "edges", "classifier")
    adapters = {name: getattr(options, name) for name in names if getattr(options, name)}
    about = {"prompt": options.prompt, "seed": seed, "model": options.model}
    return about | settings | adapters


def adapt(sd, options: argparse.Namespace, size: tuple[int, int]) -> None:
    """Put on all the adapters that are asked for. size: width, height of what will be drawn."""
    from minisd.adapters.hypernetwork import hypernetwork
    from minisd.adapters.lora import lora
    from minisd.adapters.textual_inversion import textual_inversion
    from minisd.adapters.vae_file import swap_vae

    for path in options.vae:
        swap_vae(sd, path)
    for path in options.embedding:
        textual_inversion(sd, path)
    for given in options.lora:
        lora(sd, *with_number(given))
    for given in options.hypernetwork:
        hypernetwork(sd, *with_number(given))
    follow_hints(sd, options, size)
    guide(sd, options)


def follow_hints(sd, options: argparse.Namespace, size: tuple[int, int]) -> None:
    """Put on the ControlNets, each with its hint made to fit."""
    from minisd.adapters.controlnet import ControlNet, control
    from minisd.pictures import colours
    from minisd.pipeline import from_pil
    from minisd.tasks.edges import canny

    for given in options.control:
        rest, scale = with_number(given)
        path, hint = two_paths(rest)
        picture = colours(open_picture(Path(hint)), "hint")
        if picture.size != size:
            say_resized("hint", picture.size, size)
            picture = picture.resize(size)
        shown = canny(from_pil(picture)) if options.edges else picture
        control(sd, ControlNet.load(path), shown, scale)


def guide(sd, options: argparse.Namespace) -> None:
    """Let classifiers lead. ValueError: one is given without a thing to lead to."""
    from minisd.training.classifier import ClassifierGuidance, load

    for given in options.classifier:
        rest, scale = with_number(given)
        path, _, thing = rest.rpartition(":")
        if not path:
            raise ValueError(f"{given!r} names no thing: write FILE:THING, such as {given}:cat.")
        ClassifierGuidance(sd, load(Path(path)), thing, scale)


def with_number(given: str) -> tuple[str, float]:
    """
    >>> with_number("style.safetensors:0.5"), with_number("C:/style.safetensors")
    (('style.safetensors', 0.5), ('C:/style.safetensors', 1.0))
    """
    path, _, number = given.rpartition(":")
    try:
        return (path, float(number)) if path else (given, 1.0)
    except ValueError:
        return given, 1.0


def two_paths(given: str) -> tuple[str, str]:
    """FILE:HINT, cut where it leaves a file. ValueError: there is no such place."""
    from minisd.checkpoints.official import local

    for at, letter in enumerate(given):
        if letter == ":" and local(given[:at]).is_file():
            return given[:at], given[at + 1 :]
    raise ValueError(f"{given!r} names no ControlNet and hint: write FILE:HINT, two files.")
