"""Reads the adapter options of a command, and attaches the adapters to the model."""

import argparse
from math import isfinite
from pathlib import Path

from minisd.cli.picture_files import open_input, report_resize


def check_exists(source: str) -> None:
    """Raise ValueError unless the source is a file, a folder, or a name that minisd knows."""
    from minisd.checkpoints.registry import local_path

    path = local_path(source)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: check the path.")


def split_scale(given: str) -> tuple[str, float]:
    """Split FILE[:SCALE] into the file and its scale. Without SCALE, the scale is 1.

    Raises ValueError if the scale is inf or nan.

    >>> split_scale("style.safetensors:0.5"), split_scale("C:/style.safetensors")
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


def split_hint(given: str) -> tuple[str, str]:
    """Split FILE:HINT into FILE and HINT.

    Both paths may contain colons, for example C:/edges.png. So every colon is tried from the left.
    The text is split at the first colon that has the path of an existing file before it.

    Raises ValueError if there is no such colon.
    """
    from minisd.checkpoints.registry import local_path

    for at, letter in enumerate(given):
        if letter == ":" and local_path(given[:at]).exists():
            return given[:at], given[at + 1 :]
    network = given.rpartition(":")[0]
    if not network:
        raise ValueError(f"{given!r} names no hint: write FILE:HINT, with two files.")
    raise ValueError(
        f"There is no file {local_path(network)}: write FILE:HINT with two existing files."
    )


def split_thing(given: str) -> tuple[str, str, float]:
    """Split FILE:THING[:SCALE] into the classifier's file, what to draw, and the scale.

    Raises ValueError if the text names nothing to draw.
    """
    rest, scale = split_scale(given)
    path, _, thing = rest.rpartition(":")
    if not path:
        raise ValueError(f"{given!r} names no thing to draw: write FILE:THING, as in {given}:cat.")
    return path, thing, scale


def named_sources(options: argparse.Namespace) -> dict[str, list[str]]:
    """All files that the picture depends on. Returns a dictionary: name of an option -> files."""
    found = {"model": [options.model], "vae": options.vae, "embedding": options.embedding}
    for name in ("lora", "hypernetwork"):
        found[name] = [split_scale(given)[0] for given in getattr(options, name)]
    found["classifier"] = [split_thing(given)[0] for given in options.classifier]
    for name in ("network", "hint", "image", "mask", "depth", "estimator"):
        value = getattr(options, name, None)
        found[name] = [] if value is None else [str(value)]
    pairs = [split_hint(split_scale(given)[0]) for given in options.control]
    found["control"] = [path for pair in pairs for path in pair]
    return found


def attach_adapters(sd, options: argparse.Namespace, size: tuple[int, int], hints: list) -> None:
    """Attach all adapters of the command to the model.

    Each hint of a ControlNet is resized to the size of the picture to draw. With --edges, each
    ControlNet reads the edges of its hint, instead of the hint itself.

    size: width and height of the picture to draw
    hints: what read_hints() returns
    """
    from minisd.adapters.classifier import ClassifierGuidance, load_classifier
    from minisd.adapters.controlnet import ControlNet, control
    from minisd.adapters.hypernetwork import hypernetwork
    from minisd.adapters.lora import lora
    from minisd.adapters.textual_inversion import textual_inversion
    from minisd.adapters.vae_file import swap_vae
    from minisd.files.pictures import from_pil
    from minisd.tasks.canny import canny

    for path in options.vae:
        swap_vae(sd, path)
    for path in options.embedding:
        textual_inversion(sd, path)
    for given in options.lora:
        lora(sd, *split_scale(given))
    for given in options.hypernetwork:
        hypernetwork(sd, *split_scale(given))
    for path, picture, scale in hints:
        if picture.size != size:
            report_resize("hint", picture.size, size)
            picture = picture.resize(size)
        shown = canny(from_pil(picture)) if options.edges else picture
        control(sd, ControlNet.load(path), shown, scale)
    for given in options.classifier:
        path, thing, scale = split_thing(given)
        ClassifierGuidance(sd, load_classifier(path), thing, scale)


def read_hints(options: argparse.Namespace) -> list:
    """Open the hint of every ControlNet. A hint is a picture that the ControlNet follows.

    If the command is `minisd control`, its own ControlNet comes first. The ControlNets of the
    option --control follow.

    returns: (network, picture, scale) for each ControlNet
    """
    from minisd.files.pictures import colours

    rows = [(*split_hint(paths), scale) for paths, scale in map(split_scale, options.control)]
    if options.command == "control":
        rows.insert(0, (options.network, options.hint, options.weight))
    return [(path, colours(open_input(Path(hint)), "hint"), scale) for path, hint, scale in rows]
