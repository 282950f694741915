"""The options of the drawing commands, and their default values."""

import argparse
from pathlib import Path

from minisd.cli.mine import add_mine_option

# The names in samplers.py and sampling.py. They are repeated here, because importing those files
# imports torch. A test checks that the names are the same.
SAMPLER_CHOICES = ("ddpm", "ddim", "plms", "lcm", "lms", "euler", "euler_ancestral", "heun")
SAMPLER_CHOICES += ("dpmpp_2m",)
SPACING_CHOICES = ("leading", "linspace", "trailing", "uniform", "karras")
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # a name -> torch's name
ENGINES = ("pytorch", "openvino")
ADAPTERS = ("lora", "embedding", "hypernetwork", "vae", "control", "classifier")

# Each drawing command: its purpose, and its words in order. The prompt comes first.
DRAWING = {
    "generate": ("draw a picture from a prompt", ["prompt"]),
    "img2img": ("draw a picture again, following a prompt", ["prompt", "image"]),
    "inpaint": ("draw one part of a picture again", ["prompt", "image", "mask"]),
    "depth": ("draw a picture again and keep its depth", ["prompt", "image"]),
    "control": ("draw a picture that follows a hint (ControlNet)", ["prompt", "network", "hint"]),
}
POSITIONAL_HELP = {
    "prompt": 'in quotes, such as "a cat on a blue background"',
    "image": "the picture to start from",
    "mask": "a picture of the same size: white is drawn again",
    "network": "a ControlNet: FILE or NAME, such as mini-edges",
    "hint": "the picture to follow: edges, a pose, …",
}
DEFAULTS = {
    "output": Path("picture.png"),
    "model": "mini",
    "negative": "",
    "steps": 30,
    "seed": 0,
    "number": 1,
    "device": "cpu",
    "dtype": "float32",
    "clip_skip": 0,
    "weight": 1.0,
    **dict.fromkeys(("lcm", "ema", "edges", "extended", "paste"), False),
    **{name: [] for name in ADAPTERS},
}
STRENGTHS = {"img2img": 0.75, "inpaint": 1.0, "depth": 0.8}


def add_drawing_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add every option of a drawing command.

    An option that the user does not give is None at first. fill_in_options() sets its value later.
    """
    _, words = DRAWING[name]
    command.usage = " ".join(["minisd", name, *(word.upper() for word in words), "[options]"])
    for word in words:
        command.add_argument(word, nargs="?", metavar=word.upper(), help=POSITIONAL_HELP[word])
    add_common_options(command)
    add_command_options(command, name)
    add_adapter_options(command)


def add_common_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every drawing command."""
    add = command.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="the PNG to write (picture.png)")
    add("--force", action="store_true", help="overwrite a file of that name")
    add("--like", type=Path, metavar="PICTURE", help="repeat this picture; other options change it")
    add("--model", help="FILE, FOLDER or NAME (mini)")
    add("--negative", metavar="PROMPT", help="a prompt to steer away from")
    add("--steps", type=int, metavar="N", help="1 to 1000 (30); for few, add --spacing trailing")
    add("--scale", type=float, metavar="X", help="how strongly the prompt steers (the model's)")
    names = f"{', '.join(SAMPLER_CHOICES)} (the model's)"
    add("--sampler", choices=SAMPLER_CHOICES, metavar="NAME", help=names)
    add("--lcm", action="store_const", const=True, help="draw in 4 steps, with an LCM-LoRA")
    add("--spacing", choices=SPACING_CHOICES, metavar="NAME", help=", ".join(SPACING_CHOICES))
    add("--seed", type=int, metavar="N", help="seed of picture 1 (0); picture 2 gets N + 1")
    add("-n", "--number", type=int, metavar="N", help="how many pictures (1)")
    add("--prediction", choices=("eps", "v"), help="what the U-Net predicts, if no file says so")
    add("--ema", action="store_const", const=True, help="take a checkpoint's averaged weights")
    add("--device", metavar="NAME", help="cpu, cuda or mps (cpu)")
    add("--dtype", type=torch_name, metavar="NAME", help=f"{', '.join(DTYPE_NAMES)} (fp32)")
    add("--engine", choices=ENGINES, metavar="NAME", help=f"{', '.join(ENGINES)} (pytorch)")


def torch_name(given: str) -> str:
    """The type of --dtype. argparse turns the error into a message."""
    if given not in DTYPE_NAMES:
        raise argparse.ArgumentTypeError(
            f"{given!r} is none of {', '.join(DTYPE_NAMES)}. Choose one"
        )
    return DTYPE_NAMES[given]


def add_command_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options that only this command has, and the options for the picture's size."""
    add, switch = command.add_argument, argparse.BooleanOptionalAction
    size = f"a multiple of 8 (the {'picture' if name in STRENGTHS else 'model'}'s)"
    add("--width", type=int, metavar="PIXELS", help=size)
    add("--height", type=int, metavar="PIXELS", help=size)
    if name == "generate":
        what = "draw all prompts of a .txt or .csv file"
        add("--prompts", type=Path, metavar="FILE", help=what)
        add("--extended", action=switch, help="read weights like (word:1.2) and long prompts")
        add("--clip-skip", type=int, metavar="N", help="how many last text layers to leave out (0)")
        add_mine_option(command)
        add("--every-step", action="store_true", help="also write each step's guess, in one row")
    if name in STRENGTHS:
        meaning = f"0 keeps the picture, 1 ignores it ({STRENGTHS[name]:g})"
        add("--strength", type=float, metavar="X", help=meaning)
    if name == "inpaint":
        add("--paste", action=switch, help="put the original pixels back outside the mask")
    if name == "depth":
        meaning = "grey picture, near is bright (estimated)"
        add("--depth", type=Path, metavar="PICTURE", help=meaning)
        add("--estimator", metavar="FILE", help="a depth estimator: FILE or NAME (the model's)")
    if name == "control":
        add("--weight", type=float, metavar="X", help="how closely to follow the hint (1)")


def add_adapter_options(command: argparse.ArgumentParser) -> None:
    """Add the options that change the networks. A FILE may also be a name that minisd knows."""
    add = command.add_argument_group("adapters: FILE or NAME; repeat an option to add more")
    more = add.add_argument
    more("--lora", action="append", metavar="FILE[:SCALE]")
    more("--embedding", action="append", metavar="FILE", help="a new word to use in the prompt")
    more("--hypernetwork", action="append", metavar="FILE[:STRENGTH]")
    more("--vae", action="append", metavar="FILE")
    more("--control", action="append", metavar="FILE:HINT[:SCALE]")
    switch = argparse.BooleanOptionalAction
    more("--edges", action=switch, help="compute the edges of each hint picture first")
    more("--classifier", action="append", metavar="FILE:THING[:SCALE]")


def given_options(options: argparse.Namespace) -> set[str]:
    """The names of the options that the command line sets."""
    return {name for name, value in vars(options).items() if value is not None}


def fill_in_options(options: argparse.Namespace, recorded: dict) -> None:
    """Give every option a value: from the command line, else from `recorded`, else the default.

    recorded: name of an option -> its value when the picture of --like was drawn
    """
    defaults = DEFAULTS | {"strength": STRENGTHS.get(options.command)} | (recorded or {})
    for name, value in vars(options).items():
        if value is None:
            setattr(options, name, defaults.get(name))
    for name in ADAPTERS:  # an empty value removes the recorded files
        setattr(options, name, [one for one in getattr(options, name) if one])
