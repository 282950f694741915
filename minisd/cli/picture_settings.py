"""Writes the settings of a picture into its file, shows them, and reads them for --like.

The settings are stored as JSON in the PNG's text chunk "minisd": every setting that affects the
picture, and the sha256 of every file that was used. Nothing is stored that changes from run to run,
such as a date. So if the same picture is drawn again, the new file has the same bytes.
"""

import argparse
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from minisd.cli import a1111_metadata
from minisd.cli.adapter_options import named_sources
from minisd.cli.drawing_options import ADAPTERS
from minisd.cli.file_hashes import hash_of
from minisd.cli.messages import LONGEST_RESULT, print_message
from minisd.cli.picture_files import open_input
from minisd.files.json_files import parse_json
from minisd.files.one_line import one_line

# The settings, in the order in which the file holds them.
SETTINGS = ("prompt", "negative_prompt", "seed", "steps", "cfg_scale", "sampler", "spacing")
SETTINGS += ("width", "height", "clip_skip", "extended", "strength", "paste", "image", "mask")
SETTINGS += ("depth", "estimator", "network", "hint", "weight", "edges", "model", "prediction")
SETTINGS += ("ema", "device", "dtype", "engine", *ADAPTERS)
OTHER_NAMES = {"negative_prompt": "negative", "cfg_scale": "scale"}  # a setting -> its option
TYPES = {  # a setting -> its type. All other settings are strings
    **dict.fromkeys(("seed", "steps", "width", "height", "clip_skip"), int),
    **dict.fromkeys(("cfg_scale", "strength", "weight"), float),
    **dict.fromkeys(("extended", "paste", "edges", "ema"), bool),
    **dict.fromkeys(ADAPTERS, list),
    "depth": Path,
}
# The name of a setting in the file -> the name of its option, and its type.
PICTURE_SETTINGS = {name: (OTHER_NAMES.get(name, name), TYPES.get(name, str)) for name in SETTINGS}
THREADS = range(1, 1025)  # the valid numbers of threads in a file
# The stored settings that are not options. "schedule" is the spacing that the model's folder
# states. It is stored only if --spacing is not given, and not with the sampler lcm, which ignores
# it. "own_parts" lists the exercises whose answers the student has drawn with (--mine).
FACTS = ("minisd", "command", "hashes", "threads", "torch", "openvino", "schedule")
FACTS += ("own_parts",)


def collect_settings(options: argparse.Namespace, sd, settings: dict) -> dict[str, Any]:
    """Collect all settings of a picture except its seed. Returns a dictionary: name -> value.

    settings: the settings that the model decides if no option is given, such as "sampler"
    """
    import torch

    import minisd

    own = {name: getattr(options, dest, None) for name, (dest, _) in PICTURE_SETTINGS.items()}
    own |= settings | {"prediction": sd.config.schedule.prediction}
    own["own_parts"] = getattr(options, "own_parts", None)
    own["strength"] = None if own["strength"] is None else str(own["strength"])
    named = {source for group in named_sources(options).values() for source in group}
    levels = sd.config.schedule
    if options.spacing is None and levels.spacing is not None and own["sampler"] != "lcm":
        own["schedule"] = "karras" if levels.karras else levels.spacing
    kept = {name: json_value(value) for name, value in own.items() if value not in (None, [])}
    return kept | {
        "minisd": minisd.__version__,
        "command": options.command,
        "hashes": {source: hash_of(source) for source in sorted(named)},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({} if sd.engine is None else {"openvino": version("openvino")}),
    }


def json_value(value: object) -> object:
    """The value as JSON stores it: a path becomes a string."""
    return str(value) if isinstance(value, Path) else value


# ---- reading ---------------------------------------------------------------------------------


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that minisd wrote into a picture. None if the picture has no such settings.

    Raises ValueError if the file is not a picture, or if its settings are damaged.
    """
    text = open_input(path).info.get("minisd")
    if text is None:
        return None
    with suppress(ValueError):
        about: Any = parse_json(text)
        hashes = about.get("hashes", {}) if isinstance(about, dict) else None
        if isinstance(hashes, dict) and all(isinstance(digest, str) for digest in hashes.values()):
            return about
    raise ValueError(f"{path} has damaged settings: give another picture.")


def read_a1111_text(path: Path) -> str | None:
    """The text that the AUTOMATIC1111 web UI wrote into a picture, or None.

    In a PNG, the text is a text chunk. In a JPEG or WebP, it is the comment in the EXIF data.
    """
    from minisd.files.picture_files import explain_pillow_errors

    picture = open_input(path)
    if "parameters" in picture.info:
        return str(picture.info["parameters"])
    try:
        with explain_pillow_errors(str(path)):
            comment = picture.getexif().get_ifd(0x8769).get(0x9286)  # Exif, UserComment
    except ValueError:  # the EXIF data are damaged, but the pixels do not need them
        return None
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:8], comment[8:]
    return text.decode("utf-16-be" if code == b"UNICODE\0" else "utf-8", errors="replace")


def recorded_options(options: argparse.Namespace, given: set[str]) -> dict[str, Any]:
    """A dictionary: name of an option -> its value when the picture of --like was drawn.

    Two more keys are not options: "hashes" -> the sha256 of each file, and "threads" -> the number
    of threads.

    given: the names of the options on the command line

    Raises ValueError if the picture has no settings, or if it was drawn by another command.
    """
    path = options.like
    about = read_settings(path)
    if about is None:
        return settings_of_another_program(path, options.command, given)
    if (command := about.get("command", "generate")) != options.command:
        raise ValueError(
            f"{path} was drawn by another command: use minisd {command} --like {path}."
        )
    unknown = about.keys() - PICTURE_SETTINGS.keys() - set(FACTS)
    if unknown:
        raise ValueError(
            f"{path} has the setting {min(unknown)}, which this minisd does not know: use minisd "
            f"{about.get('minisd', 'of another version')}, which drew the picture."
        )
    warn_about_versions(path, about)
    threads = about.get("threads")
    if threads is not None and (type(threads) is not int or threads not in THREADS):
        raise ValueError(damaged_message(path, "threads", threads))
    return option_values(path, about) | {"hashes": about.get("hashes", {}), "threads": threads}


def settings_of_another_program(path: Path, command: str, given: set[str]) -> dict[str, Any]:
    """A dictionary: name of an option -> its value when the web UI drew the picture.

    One more key is "model_hash" -> the first digits of the model's sha256, or "" if the digits are
    not known.

    given: the names of the options on the command line

    Raises ValueError if the picture does not say how it was drawn, if `command` cannot draw it, or
    if the picture was drawn with a setting that minisd does not have.
    """
    text = read_a1111_text(path)
    if text is None:
        raise ValueError(f"{path} does not say how it was drawn: give the settings as options.")
    if command != "generate":
        raise ValueError(
            f"{path} was drawn from a prompt alone: use minisd generate --like {path}."
        )
    try:
        about, warnings = a1111_metadata.settings_from_webui(text, given)
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from error
    for warning in warnings:
        print_message(f"{path}: {warning}")
    return option_values(path, about) | {"model_hash": a1111_metadata.model_hash(text)}


def option_values(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Rename the settings of a file to options. Returns a dictionary: name of an option -> value.

    about: name of a setting in the file -> its value

    Raises ValueError if a setting has the wrong type.
    """
    values = {}
    for name, (dest, kind) in PICTURE_SETTINGS.items():
        value = about.get(name)
        if value is None:
            continue
        try:
            values[dest] = convert_value(value, kind)
        except (ValueError, OverflowError) as error:
            raise ValueError(damaged_message(path, name, value)) from error
    return values


def damaged_message(path: Path, name: str, value: object) -> str:
    return f"{path} has damaged settings ({name} is {value!r}): give another picture."


def convert_value(value: Any, kind: type) -> object:
    """Convert a value of the file to the type of its option: `kind`.

    The file stores paths and some numbers as strings.

    Raises ValueError if the stored value does not fit this type.
    """
    stored = {float: (float, int, str), Path: (str,)}.get(kind, (kind,))
    strings = not isinstance(value, list) or all(isinstance(one, str) for one in value)
    if type(value) not in stored or not strings:
        raise ValueError(f"{value!r} is not a {kind.__name__}")
    return kind(value)


def warn_about_versions(path: Path, about: dict[str, Any]) -> None:
    """Print a message if another version of minisd, torch or OpenVINO drew the picture."""
    import torch

    import minisd

    here = {"minisd": minisd.__version__, "torch": torch.__version__}
    with suppress(PackageNotFoundError):  # the model is then not loaded, if it needs OpenVINO
        here["openvino"] = version("openvino")
    other = [f"{name} {about[name]}" for name in here if about.get(name, here[name]) != here[name]]
    if other:
        print_message(
            f"{path} was drawn by {' and '.join(other)}: the new picture may differ a little."
        )


def check_hashes(options: argparse.Namespace, hashes: dict[str, str], given: set[str]) -> None:
    """Raise ValueError if a file has changed since the picture of --like was drawn.

    A file that the command line names is not checked, because the user chose it.

    hashes: file -> its recorded sha256
    given: the names of the options on the command line
    """
    for name, named in named_sources(options).items():
        for source in named:
            recorded = hashes.get(source)
            if name not in given and recorded and hash_of(source) != recorded:
                raise ValueError(
                    f"{source} is not the file that {options.like} was drawn with. That file has "
                    f"the sha256 {recorded[:10]}…: give it with --{name}. Or give {source} with "
                    f"--{name} to draw a different picture."
                )


def warn_about_model(options: argparse.Namespace, digest: str) -> None:
    """Print a message if another model drew the picture of --like.

    digest: the first digits of the sha256 of the picture's model. "": unknown
    """
    if digest and not hash_of(options.model).startswith(digest):
        print_message(
            f"{options.like} was drawn by a model with the sha256 {digest}…, but {options.model} "
            "has another sha256: the new picture will be different."
        )


def describe_picture(path: Path) -> str:
    """A text that says how a picture was drawn, with one setting in each row.

    Raises ValueError if the file is not a picture, or if its settings are damaged or too long.
    """
    width, height = open_input(path).size
    size = f"{path.name}: {width} x {height} pixels"
    about, text = read_settings(path), read_a1111_text(path)
    if about is not None:
        rows = [(name, format_value(value)) for name, value in about.items() if name != "hashes"]
        rows += [(f"sha256 of {name}", digest) for name, digest in about.get("hashes", {}).items()]
        command = about.get("command", "generate") + " --mine" * ("own_parts" in about)
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
    """The value as text. The items of a list are separated by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
