"""Checks the settings, the files and the output of a drawing command, before a model is loaded."""

import argparse
from math import isfinite
from pathlib import Path

from minisd.cli.adapter_options import check_exists, named_sources
from minisd.cli.drawing_options import DTYPE_NAMES, ENGINES
from minisd.cli.lcm import check_lcm
from minisd.cli.memory import check_memory_at_least
from minisd.cli.picture_files import output_paths
from minisd.files.json_files import HALF_CHARACTER

SEED_RANGE = range(-(2**63), 2**64)  # what torch.Generator takes
CHECKED_LATER = ("image", "mask", "depth", "hint")  # open_input() has better messages for these


def check_before_loading(options: argparse.Namespace) -> list[Path]:
    """Check the options of a drawing command. Returns the paths of the pictures to draw.

    Raises ValueError if a setting is wrong for every model, if a file does not exist, or if a
    picture cannot be written to its path.
    """
    check_texts(options)
    check_numbers(options)
    check_engine(options)
    every_step = getattr(options, "every_step", False)
    paths = output_paths(options.output, options.number, every_step, options.force)
    check_seed_range(options.seed, options.number)
    check_size_options(options.width, options.height)
    if getattr(options, "depth", None) and options.estimator:
        raise ValueError("--depth and --estimator exclude each other: give only one of them.")
    check_lcm(options)
    check_files(options)
    return paths


def check_texts(options: argparse.Namespace) -> None:
    """Raise ValueError if a prompt has bytes that are not text.

    Such a prompt could not be stored in the picture's file.
    """
    for text in (options.prompt, options.negative):
        if half := HALF_CHARACTER.search(text or ""):
            raise ValueError(f"the prompt is not UTF-8 text (it has {half[0]!r}): type it again.")


def check_numbers(options: argparse.Namespace) -> None:
    """Raise ValueError if a number is outside its range."""
    if not 1 <= options.steps <= 1000:
        raise ValueError(f"steps must be 1 to 1000, got {options.steps}.")
    for name in ("scale", "weight"):
        value = getattr(options, name, None)
        if value is not None and not isfinite(value):
            raise ValueError(f"--{name} must be a finite number, got {value}.")
    strength = getattr(options, "strength", None)
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength must be 0 (keep the picture) to 1 (ignore it), got {strength}.")
    if getattr(options, "clip_skip", 0) < 0:
        raise ValueError(f"--clip-skip must be 0 or more, got {options.clip_skip}.")


def check_engine(options: argparse.Namespace) -> None:
    """Raise ValueError if the picture of --like names an unknown dtype or engine."""
    known = {"dtype": (*DTYPE_NAMES.values(),), "engine": (None, *ENGINES)}
    for name, values in known.items():
        if (value := getattr(options, name)) not in values:
            raise ValueError(f"there is no {name} {value!r}. Choose another with --{name}.")


def check_seed_range(first: int, number: int) -> None:
    """Raise ValueError unless the seeds of the first and of the last picture are valid."""
    last = first + number - 1
    if bad := [seed for seed in (first, last) if seed not in SEED_RANGE]:
        wrong = f"got {first}" if bad[0] == first else f"but picture {number} would have {last}"
        raise ValueError(f"seeds go from -2**63 to 2**64 - 1, {wrong}: choose another seed.")


def check_size_options(width: int | None, height: int | None) -> None:
    """Raise ValueError if no model can draw pictures of this size.

    Whether the size fits the chosen model is checked after the model is loaded.
    """
    for name, length in (("width", width), ("height", height)):
        if length is not None and length < 8:
            raise ValueError(f"--{name} {length} is too small: give a larger multiple of 8.")
    if width and height:
        check_memory_at_least(width, height)


def check_files(options: argparse.Namespace) -> None:
    """Raise ValueError if a file does not exist. The message names the first such file."""
    for name, named in named_sources(options).items():
        for source in named:
            if name not in CHECKED_LATER:
                check_exists(source)
            elif not Path(source).exists() and not Path(source).suffix:
                raise ValueError(
                    f"There is no picture {source}: check the path, and put a prompt of several "
                    "words in quotes."
                )
