"""What a picture's file says of how it was drawn: written, shown, and followed by --like.

It is JSON in the PNG's text chunk "minisd": every setting that plays a part, with the sha256 of
every file. Nothing in it changes from run to run, such as a date, so the same picture is the same
file.
"""

import argparse
from pathlib import Path

from minisd.cli import a1111_metadata
from minisd.cli.adapter_options import named_sources
from minisd.cli.file_hashes import hash_of
from minisd.cli.messages import LONGEST_RESULT, print_message
from minisd.cli.picture_files import open_input
from minisd.files.json_files import parse_json
from minisd.files.one_line import one_line

# Name in the file -> the option's name, and its type.
PICTURE_SETTINGS = {
    "prompt": ("prompt", str),
    "negative_prompt": ("negative", str),
    "seed": ("seed", int),
    "steps": ("steps", int),
    "cfg_scale": ("scale", float),
    "sampler": ("sampler", str),
    "spacing": ("spacing", str),
    "width": ("width", int),
    "height": ("height", int),
    "clip_skip": ("clip_skip", int),
    "extended": ("extended", bool),
    "strength": ("strength", float),
    "paste": ("paste", bool),
    "image": ("image", str),
    "mask": ("mask", str),
    "depth": ("depth", Path),
    "estimator": ("estimator", str),
    "network": ("network", str),
    "hint": ("hint", str),
    "weight": ("weight", float),
    "edges": ("edges", bool),
    "model": ("model", str),
    "prediction": ("prediction", str),
    "ema": ("ema", bool),
    "device": ("device", str),
    **{name: (name, list) for name in ("lora", "embedding", "hypernetwork", "vae")},
    **{name: (name, list) for name in ("control", "classifier")},
}
# What is no option. schedule: the spacing that the model's folder says, where none is asked for.
THREADS = range(1, 1025)  # as many as some machine has cores
FACTS = ("minisd", "command", "hashes", "dtype", "threads", "torch", "schedule")


def collect_settings(options: argparse.Namespace, sd, settings: dict) -> dict[str, object]:
    """Everything but the seed. settings: those that the model had a word in, by name in the file"""
    import torch

    import minisd

    own = {name: getattr(options, dest, None) for name, (dest, _) in PICTURE_SETTINGS.items()}
    own |= settings | {"prediction": sd.config.schedule.prediction}
    own["strength"] = None if own["strength"] is None else str(own["strength"])
    named = {source for group in named_sources(options).values() for source in group}
    levels = sd.config.schedule
    if options.spacing is None and levels.spacing is not None:
        own["schedule"] = "karras" if levels.karras else levels.spacing
    kept = {name: json_value(value) for name, value in own.items() if value not in (None, [])}
    return kept | {
        "minisd": minisd.__version__,
        "command": options.command,
        "hashes": {source: hash_of(source) for source in sorted(named)},
        "dtype": str(sd.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def json_value(value: object) -> object:
    """As JSON has it."""
    return str(value) if isinstance(value, Path) else value


# ---- reading ---------------------------------------------------------------------------------


def read_settings(path: Path) -> dict[str, object] | None:
    """What minisd wrote into a picture; None where it did not.

    Raises ValueError where there is no picture, and where that was changed into something else.
    """
    text = open_input(path).info.get("minisd")
    if text is None:
        return None
    try:
        about = parse_json(text)
        hashes = about.get("hashes", {})
        whole = all(isinstance(digest, str) for digest in hashes.values())
    except (ValueError, AttributeError):  # no JSON, no dictionary
        whole = False
    if not whole:
        raise ValueError(f"{path} has damaged settings: give another picture.")
    return about


def read_a1111_text(path: Path) -> str | None:
    """The web UI's text: of a PNG, or of the comment in a JPEG's or WebP's EXIF data."""
    from minisd.files.pictures import in_our_words

    picture = open_input(path)
    if "parameters" in picture.info:
        return str(picture.info["parameters"])
    try:
        with in_our_words(str(path)):
            comment = picture.getexif().get_ifd(0x8769).get(0x9286)  # Exif, UserComment
    except ValueError:  # the EXIF is damaged where no pixel needs it
        return None
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:8], comment[8:]
    return text.decode("utf-16-be" if code == b"UNICODE\0" else "utf-8", errors="replace")


def recorded_options(options: argparse.Namespace, given: set[str]) -> dict[str, object]:
    """The options that drew the picture --like names, by their names here.

    given: the options that are on the command line
    Raises ValueError where the picture does not say, was drawn by another command, or by other
    files than those of the same name here.
    """
    path = options.like
    about = read_settings(path)
    if about is None:
        return settings_of_another_program(path, options.command, given)
    if (command := about.get("command", "generate")) != options.command:
        raise ValueError(f"{path} was drawn by another command: minisd {command} --like {path}.")
    unknown = about.keys() - PICTURE_SETTINGS.keys() - set(FACTS)
    if unknown:
        raise ValueError(
            f"{path} has the setting {min(unknown)}, which this minisd does not know: it was drawn "
            f"by minisd {about.get('minisd', 'of another version')}."
        )
    warn_about_versions(path, about)
    threads = about.get("threads")
    if threads is not None and (type(threads) is not int or threads not in THREADS):
        raise ValueError(f"{path} has damaged settings (threads is {threads!r}): give another.")
    return option_values(path, about) | {"hashes": about.get("hashes", {}), "threads": threads}


def settings_of_another_program(path: Path, command: str, given: set[str]) -> dict[str, object]:
    text = read_a1111_text(path)
    if text is None:
        raise ValueError(f"{path} does not say how it was drawn: give the settings as options.")
    if command != "generate":
        raise ValueError(f"{path} was drawn from a prompt alone: minisd generate --like {path}.")
    try:
        about, warnings = a1111_metadata.settings_from_webui(text, given)
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from error
    for warning in warnings:
        print_message(f"{path}: {warning}")
    return option_values(path, about) | {"model_hash": a1111_metadata.model_hash(text)}


def option_values(path: Path, about: dict[str, object]) -> dict[str, object]:
    """The settings by the options' names, each of its type. ValueError: one has another."""
    values = {}
    for name, (dest, kind) in PICTURE_SETTINGS.items():
        value = about.get(name)
        if value is None:
            continue
        try:
            values[dest] = convert_value(value, kind)
        except (ValueError, OverflowError) as error:
            sentence = f"{path} has damaged settings ({name} is {value!r}): give another picture."
            raise ValueError(sentence) from error
    return values


def convert_value(value: object, kind: type) -> object:
    """The value as an option has it: paths and some numbers are strings in the file.

    ValueError: it is none of that kind.
    """
    if kind is float and not isinstance(value, bool | list | dict):
        return float(value)
    stored = {Path: str, list: list}.get(kind, kind)
    strings = not isinstance(value, list) or all(isinstance(one, str) for one in value)
    if type(value) is not stored or not strings:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return kind(value)


def warn_about_versions(path: Path, about: dict[str, object]) -> None:
    import torch

    import minisd

    here = {"minisd": minisd.__version__, "torch": torch.__version__}
    other = [f"{name} {about[name]}" for name in here if about.get(name, here[name]) != here[name]]
    if other:
        print_message(
            f"{path} was drawn by {' and '.join(other)}: the new picture may differ a little."
        )


def check_hashes(options: argparse.Namespace, hashes: dict[str, str], given: set[str]) -> None:
    """Raise ValueError for a file that is another one than when the picture was drawn.

    A file that the command line itself names is what is wanted, whatever it is.
    """
    for name, named in named_sources(options).items():
        for source in named:
            recorded = hashes.get(source)
            if name not in given and recorded and hash_of(source) != recorded:
                raise ValueError(
                    f"{source} is another file than the one that {options.like} was drawn with "
                    f"(sha256 {recorded[:10]}…): give the right one with --{name}, or this one "
                    "there to draw another picture."
                )


def warn_about_model(options: argparse.Namespace, digest: str) -> None:
    """digest: the beginning of the model's sha256, "" where it is not known"""
    if digest and not hash_of(options.model).startswith(digest):
        print_message(
            f"{options.like} was drawn by a model with the sha256 {digest}…, which "
            f"{options.model} is not: the new picture will be another one."
        )


def describe_picture(path: Path) -> str:
    """What a picture's file says about how it was drawn, in rows, for a person.

    Raises ValueError if the file is no picture, or if what it says is damaged or too long.
    """
    width, height = open_input(path).size
    size = f"{path.name}: {width} x {height} pixels"
    about, text = read_settings(path), read_a1111_text(path)
    if about is not None:
        rows = [(name, format_value(value)) for name, value in about.items() if name != "hashes"]
        rows += [(f"sha256 of {name}", digest) for name, digest in about.get("hashes", {}).items()]
        command = about.get("command", "generate")
        head, again = f"{size}, drawn by minisd {about.get('minisd', '')}".rstrip(), command
    elif text is not None:
        try:
            rows, again = list(a1111_metadata.parse_parameters(text).items()), "generate"
        except ValueError as error:
            raise ValueError(f"{path} {error}.") from error
        head = f"{size}, with the settings of another program"
    else:
        return one_line(f"{size}; it does not say how it was drawn")
    rows += [("draw it again", f"minisd {again} --like {path}")]
    lines = [head, *(f"  {name:<16} {value}" for name, value in rows)]
    return "\n".join(one_line(line, LONGEST_RESULT) for line in lines)


def format_value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
