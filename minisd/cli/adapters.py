"""The adapters of a command: the files that their options name, and how they go on the model."""

import argparse
from math import isfinite
from pathlib import Path

from minisd.cli.pictures import open_input, say_resized


def existing(source: str) -> str:
    """The source itself. ValueError: it is no name that minisd knows, and no file or folder."""
    from minisd.checkpoints.registry import local_path

    path = local_path(source)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: check the path.")
    return source


def with_number(given: str) -> tuple[str, float]:
    """
    >>> with_number("style.safetensors:0.5"), with_number("C:/style.safetensors")
    (('style.safetensors', 0.5), ('C:/style.safetensors', 1.0))
    """
    path, _, number = given.rpartition(":")
    try:
        scale = float(number) if path else 1.0
    except ValueError:
        return given, 1.0
    if not isfinite(scale):
        raise ValueError(f"{given!r} has the scale {number}: give a finite number.")
    return path or given, scale


def two_paths(given: str) -> tuple[str, str]:
    """FILE:HINT, cut where it leaves a file. ValueError: there is no such place."""
    from minisd.checkpoints.registry import local_path

    for at, letter in enumerate(given):
        if letter == ":" and local_path(given[:at]).exists():
            return given[:at], given[at + 1 :]
    network = given.rpartition(":")[0]
    if not network:
        raise ValueError(f"{given!r} names no hint: write FILE:HINT, two files.")
    raise ValueError(
        f"There is no file {local_path(network)}: write FILE:HINT, two files, not {given}."
    )


def controlnet_hints(options: argparse.Namespace) -> list[tuple[str, str, float]]:
    """Every ControlNet with its hint and scale."""
    own = []
    if options.command == "control":
        own = [(options.network, options.hint, options.weight)]
    rest = [with_number(given) for given in options.control]
    return own + [(*two_paths(paths), scale) for paths, scale in rest]


def with_thing(given: str) -> tuple[str, str, float]:
    """FILE:THING[:SCALE]. ValueError: there is no thing."""
    rest, scale = with_number(given)
    path, _, thing = rest.rpartition(":")
    if not path:
        raise ValueError(f"{given!r} names no thing: write FILE:THING, such as {given}:cat.")
    return path, thing, scale


def sources(options: argparse.Namespace) -> dict[str, list[str]]:
    """Every file that plays a part, by the option or the word that names it."""
    found = {"model": [options.model], "vae": options.vae, "embedding": options.embedding}
    for name in ("lora", "hypernetwork"):
        found[name] = [with_number(given)[0] for given in getattr(options, name)]
    found["classifier"] = [with_thing(given)[0] for given in options.classifier]
    pairs = controlnet_hints(options)
    own, rest = (pairs[:1], pairs[1:]) if options.command == "control" else ([], pairs)
    found["network"], found["hint"] = [one[0] for one in own], [one[1] for one in own]
    found["control"] = [path for network, hint, _ in rest for path in (network, hint)]
    for name in ("image", "mask", "depth", "estimator"):
        value = getattr(options, name, None)
        found[name] = [] if value is None else [str(value)]
    return found


def adapt(sd, options: argparse.Namespace, size: tuple[int, int], hints: list) -> None:
    """Put on all the adapters that are asked for.

    size: width, height of what will be drawn    hints: as read_hints() gives them
    """
    from minisd.adapters.classifier import ClassifierGuidance, load_classifier
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
    follow_hints(sd, options.edges, size, hints)
    for given in options.classifier:
        path, thing, scale = with_thing(given)
        ClassifierGuidance(sd, load_classifier(path), thing, scale)


def read_hints(options: argparse.Namespace) -> list:
    """For every ControlNet: where it lies, the picture of its hint, and its scale."""
    from minisd.files.pictures import colours

    return [
        (network, colours(open_input(Path(hint)), "hint"), scale)
        for network, hint, scale in controlnet_hints(options)
    ]


def follow_hints(sd, edges: bool, size: tuple[int, int], hints: list) -> None:
    """Put on the ControlNets, each with its hint made to fit.

    edges: the hints are pictures, and their edges are what to follow
    """
    from minisd.adapters.controlnet import ControlNet, control
    from minisd.files.pictures import from_pil
    from minisd.tasks.canny import canny

    for path, picture, scale in hints:
        if picture.size != size:
            say_resized("hint", picture.size, size)
            picture = picture.resize(size)
        shown = canny(from_pil(picture)) if edges else picture
        control(sd, ControlNet.load(path), shown, scale)
