"""The commands that draw: generate, img2img, inpaint, depth and control."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from minisd.cli import picture_settings
from minisd.cli.adapter_options import attach_adapters, read_hints
from minisd.cli.argument_parser import place_words
from minisd.cli.drawing_options import DRAWING, STRENGTHS, fill_in_options, given_options
from minisd.cli.lcm import add_lcm_lora, apply_lcm_option
from minisd.cli.memory import check_memory, enough_memory
from minisd.cli.mine import use_mine_option
from minisd.cli.option_checks import check_before_loading
from minisd.cli.picture_files import fitting_size, open_input, strip_path, write_png


def draw_command(options: argparse.Namespace, extra: list[str]) -> None:
    """Run a drawing command.

    extra: the words of the command line that argparse did not store in `options`
    """
    if getattr(options, "prompts", None) is not None:
        from minisd.cli.prompt_list import draw_list

        return draw_list(options, extra)
    _, words = DRAWING[options.command]
    place_words(options, extra, words, needed=options.like is None)
    apply_lcm_option(options)
    given = given_options(options)
    recorded = {} if options.like is None else picture_settings.recorded_options(options, given)
    fill_in_options(options, recorded)
    outputs = check_before_loading(options)
    picture_settings.check_hashes(options, recorded.get("hashes", {}), given)
    picture_settings.warn_about_model(options, recorded.get("model_hash", ""))
    with use_threads(recorded.get("threads")), use_mine_option(options):
        COMMANDS[options.command](options, outputs)


@contextmanager
def use_threads(number: int | None) -> Iterator[None]:
    """Let torch use this number of threads inside a `with` block. None: the number does not change.

    The last bit of a sum depends on the number of threads. So --like uses as many threads as the
    command that drew the picture.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw_from_prompt(options: argparse.Namespace, outputs: list[Path]) -> None:
    """Draw the pictures one by one. Each file also holds the settings of its picture."""
    from tqdm import tqdm

    from minisd.files.pictures import to_pil
    from minisd.teaching.picture_grid import paste_grid

    hints = read_hints(options)
    sd = load_model(options)
    add_lcm_lora(options, sd.config)
    settings = text_settings(sd, options)
    size = (settings["width"], settings["height"])
    check_memory(sd, *size)
    about = picture_settings.collect_settings(options, sd, settings)
    attach_adapters(sd, options, size, hints)
    for seed, path in enumerate(outputs, start=options.seed):
        guesses = []
        with enough_memory(sd, *size):
            walk = sd.txt2img_steps(options.prompt, seed=seed, **settings)
            for step in tqdm(walk, total=options.steps, disable=not sys.stderr.isatty()):
                if getattr(options, "every_step", False):
                    guesses += to_pil(sd.decode(step.prediction.x0))
            drawn = to_pil(sd.decode(step.x))[0]
        write_png(drawn, path, about | {"seed": seed})
        if guesses:
            write_png(paste_grid(guesses)[0], strip_path(path), about | {"seed": seed})


def choose_task(options: argparse.Namespace) -> tuple[Callable, dict[str, Any]]:
    """The function that draws from a picture, and the arguments that only this function has.

    The depth comes from the option --depth. Without this option, a network estimates the depth. The
    network is read from its file at the first use, after all checks.
    """
    from minisd.tasks.depth2img import depth2img
    from minisd.tasks.img2img import img2img
    from minisd.tasks.inpaint import inpaint

    if options.command == "img2img":
        return img2img, {}
    if options.command == "inpaint":
        return inpaint, {"mask": open_input(Path(options.mask)), "paste": options.paste}
    if options.depth:
        return depth2img, {"depth": open_input(options.depth)}
    estimator = cache(partial(read_estimator, options))
    return depth2img, {"estimator": lambda image: estimator()(image)}


def read_estimator(options: argparse.Namespace):
    """Load the depth estimator of --estimator. Without this option, load the model's estimator."""
    from minisd.checkpoints.load import locate
    from minisd.depth.small import load_estimator

    source = locate(options.estimator or options.model)
    inside = source / "depth_estimator" / "model.safetensors"  # in a diffusers folder
    return load_estimator(inside if inside.exists() else source)


def draw_from_picture(options: argparse.Namespace, outputs: list[Path]) -> None:
    """Draw the input picture again, once for every seed, and write the drawn pictures.

    The input picture and the mask are resized to the size of the picture to draw.

    Raises ValueError if the mask does not have the size of the input picture.
    """
    from minisd.files.pictures import colours, mask_shades, size_step

    task, more = choose_task(options)
    image = open_input(Path(options.image))
    if "mask" in more and more["mask"].size != image.size:
        raise ValueError(
            f"the mask has the size {more['mask'].size}, but the picture has the size "
            f"{image.size}: give a mask of the picture's size."
        )
    hints = read_hints(options)
    sd = load_model(options)
    add_lcm_lora(options, sd.config)
    size = fitting_size(image.size, options, size_step(sd.config))
    check_memory(sd, *size)
    image = image if image.size == size else colours(image).resize(size)
    if "mask" in more:
        more["mask"] = mask_shades(more["mask"]).resize(size)
    settings = common_settings(sd, options)
    sizes = {"width": size[0], "height": size[1]}
    about = picture_settings.collect_settings(options, sd, settings | sizes)
    attach_adapters(sd, options, size, hints)
    settings |= {"strength": options.strength, "progress": sys.stderr.isatty(), **more}
    for seed, path in enumerate(outputs, start=options.seed):
        with enough_memory(sd, *size):
            drawn = task(sd, options.prompt, image, seed=seed, **settings)
        write_png(drawn, path, about | {"seed": seed})


def load_model(options: argparse.Namespace):
    """Load the model. If the model's file has no VAE, also load the VAE of --vae."""
    import torch

    import minisd

    settings = {name: getattr(options, name) for name in ("device", "prediction", "ema")}
    settings["dtype"] = getattr(torch, options.dtype)
    settings["engine"] = None if options.engine == "pytorch" else options.engine
    try:
        return minisd.load(options.model, **settings)
    except ValueError as error:
        if not options.vae or "--vae" not in str(error):  # a VAE would not help
            raise
    return minisd.load(options.model, **settings, vae=options.vae[0])


def common_settings(sd, options: argparse.Namespace) -> dict:
    """The settings that every task takes.

    If --scale or --sampler is not given, the model's own setting is used.
    """
    return {
        "negative_prompt": options.negative,
        "steps": options.steps,
        "cfg_scale": sd.config.cfg_scale if options.scale is None else options.scale,
        "sampler": options.sampler or sd.config.sampler,
        "spacing": options.spacing,
    }


def text_settings(sd, options: argparse.Namespace) -> dict:
    """The arguments of txt2img besides the prompt and the seed."""
    return common_settings(sd, options) | {
        "width": sd.config.size if options.width is None else options.width,
        "height": sd.config.size if options.height is None else options.height,
        "clip_skip": getattr(options, "clip_skip", 0),
        "extended": getattr(options, "extended", False),
    }


COMMANDS = {name: draw_from_picture if name in STRENGTHS else draw_from_prompt for name in DRAWING}
