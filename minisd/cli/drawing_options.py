"""What the drawing commands take, and what an option means that is not given."""

import argparse
from pathlib import Path

# The names in samplers.py and sampling.py, which would import torch. A test compares them.
SAMPLER_CHOICES = ("ddpm", "ddim", "plms", "lms", "euler", "euler_ancestral", "heun", "dpmpp_2m")
SPACING_CHOICES = ("leading", "linspace", "trailing", "uniform", "karras")
ADAPTERS = ("lora", "embedding", "hypernetwork", "vae", "control", "classifier")

POSITIONALS = {  # what each command takes in this order, the prompt first
    "generate": ["prompt"],
    "img2img": ["prompt", "image"],
    "inpaint": ["prompt", "image", "mask"],
    "depth": ["prompt", "image"],
    "control": ["prompt", "network", "hint"],
}
POSITIONAL_HELP = {
    "prompt": 'in quotes, such as "a cat on a blue background"',
    "image": "the picture to begin with",
    "mask": "a picture of the same size: white is drawn again",
    "network": "a ControlNet: FILE, or NAME as mini-edges",
    "hint": "a picture of what it was trained to follow: edges, a pose, …",
}
DEFAULTS = {
    "output": Path("picture.png"),
    "model": "mini",
    "negative": "",
    "steps": 30,
    "seed": 0,
    "number": 1,
    "device": "cpu",
    "ema": False,
    "edges": False,
    "extended": False,
    "clip_skip": 0,
    "paste": False,
    "weight": 1.0,
    **{name: [] for name in ADAPTERS},
}
STRENGTHS = {"img2img": 0.75, "inpaint": 1.0, "depth": 0.8}


def add_drawing_options(command: argparse.ArgumentParser, name: str) -> None:
    """All that a drawing command takes. Options that are not given stay None: see fill_in."""
    words = POSITIONALS[name]
    command.usage = " ".join(["minisd", name, *(word.upper() for word in words), "[options]"])
    for word in words:
        command.add_argument(word, nargs="?", metavar=word.upper(), help=POSITIONAL_HELP[word])
    add_common_options(command)
    add_command_options(command, name)
    add_adapter_options(command)


def add_common_options(command: argparse.ArgumentParser) -> None:
    """What every drawing command takes."""
    add = command.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="a PNG (picture.png)")
    add("--force", action="store_true", help="write over a picture of that name")
    add("--like", type=Path, metavar="PICTURE", help="draw it again; options given here change it")
    add("--model", help="FILE, FOLDER or NAME (mini)")
    add("--negative", metavar="PROMPT", help="what to steer away from")
    add("--steps", type=int, metavar="N", help="1 to 1000 (30); few need --spacing trailing")
    add("--scale", type=float, metavar="X", help="how strongly the prompt steers (the model's)")
    known = f"{', '.join(SAMPLER_CHOICES)} (the model's)"
    add("--sampler", choices=SAMPLER_CHOICES, metavar="NAME", help=known)
    known = f"{', '.join(SPACING_CHOICES)} (the sampler's)"
    add("--spacing", choices=SPACING_CHOICES, metavar="NAME", help=f"of the noise levels: {known}")
    add("--seed", type=int, metavar="N", help="of the first picture; the next have N + 1, … (0)")
    add("-n", "--number", type=int, metavar="N", help="how many pictures (1)")
    add("--prediction", choices=("eps", "v"), help="if the model's file cannot say it")
    add("--ema", action="store_const", const=True, help="a training checkpoint's averaged weights")
    add("--device", metavar="NAME", help="cpu, cuda or mps (cpu)")


def add_command_options(command: argparse.ArgumentParser, name: str) -> None:
    """What this command alone takes, and the sizes."""
    add, switch = command.add_argument, argparse.BooleanOptionalAction
    add("--width", type=int, metavar="PIXELS", help=f"multiples of 8 ({default_size(name)})")
    add("--height", type=int, metavar="PIXELS", help="the same")
    if name == "generate":
        add("--extended", action=switch, help="read (word:1.2) weights and long prompts")
        add("--clip-skip", type=int, metavar="N", help="text layers to leave out at the end (0)")
        add("--every-step", action="store_true", help="also write each step's guess, as a strip")
    if name in STRENGTHS:
        meaning = f"0 keeps the picture, 1 forgets it ({STRENGTHS[name]:g})"
        add("--strength", type=float, metavar="X", help=meaning)
    if name == "inpaint":
        add("--paste", action=switch, help="put the original pixels back outside the mask")
    if name == "depth":
        add("--depth", type=Path, metavar="PICTURE", help="grey, near is bright (estimated)")
        add("--estimator", metavar="FILE", help="of depth, or a NAME (in the model's file)")
    if name == "control":
        add("--weight", type=float, metavar="X", help="how closely to follow the hint (1)")


def default_size(name: str) -> str:
    return "the picture's" if name in STRENGTHS else "the model's"


def add_adapter_options(command: argparse.ArgumentParser) -> None:
    """What changes the network. A FILE may also be the name of a shipped one."""
    add = command.add_argument_group("adapters, each as often as you like; FILE or NAME")
    more = add.add_argument
    more("--lora", action="append", metavar="FILE[:SCALE]")
    more("--embedding", action="append", metavar="FILE", help="its word goes in the prompt")
    more("--hypernetwork", action="append", metavar="FILE[:STRENGTH]")
    more("--vae", action="append", metavar="FILE")
    more("--control", action="append", metavar="FILE:HINT[:SCALE]")
    switch = argparse.BooleanOptionalAction
    more("--edges", action=switch, help="hints are pictures whose edges to follow")
    more("--classifier", action="append", metavar="FILE:THING[:SCALE]")


def given_options(options: argparse.Namespace) -> set[str]:
    """The names of what the command line itself says."""
    return {name for name, value in vars(options).items() if value is not None}


def fill_in_options(options: argparse.Namespace, recorded: dict) -> None:
    """Give every option its value: the given one, else the recorded one, else the default.

    recorded: those of the picture that --like names, by the options' names
    """
    defaults = DEFAULTS | {"strength": STRENGTHS.get(options.command)} | (recorded or {})
    for name, value in vars(options).items():
        if value is None:
            setattr(options, name, defaults.get(name))
    for name in ADAPTERS:  # an empty one takes away what was recorded
        setattr(options, name, [one for one in getattr(options, name) if one])
