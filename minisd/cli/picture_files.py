"""Opens pictures, chooses sizes and file names, and writes pictures with their settings inside."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from minisd.cli.messages import print_message, print_results

MOST_PICTURES = 10_000  # in one command: all names are chosen before the first picture is drawn


def open_input(path: Path):
    """Open a picture and turn it upright. Raises ValueError if the file is not a picture."""
    from minisd.files.picture_files import open_picture

    return open_picture(path)


# The first bytes of all kinds of pictures except WebP.
STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def is_picture(path: Path) -> bool:
    """Whether the first bytes are those of a picture. The name of the file does not matter.

    A .safetensors file begins with the length of its header. These eight bytes may look like the
    start of a picture, but they are followed by a brace.
    """
    with open(path, "rb") as file:
        start = file.read(12)
    return (start.startswith(STARTS) and start[8:9] != b"{") or start[8:] == b"WEBP"


def fitting_size(
    size: tuple[int, int], options: argparse.Namespace, multiple: int
) -> tuple[int, int]:
    """The width and height to draw. Print a message if they differ from the picture's.

    Without options for the size, the picture's width and height are rounded.

    size: width and height of the picture
    multiple: a number. The picture's width and height are rounded to multiples of this number
    """
    width, height = (max(multiple, round(length / multiple) * multiple) for length in size)
    width = width if options.width is None else options.width
    height = height if options.height is None else options.height
    if (width, height) != size:
        report_resize("picture", size, (width, height))
    return width, height


def report_resize(what: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Print that a picture or a hint is resized. old, new: width and height"""
    sizes = " to ".join(f"{width} x {height}" for width, height in (old, new))
    print_message(f"the {what} is resized from {sizes}.")


def progress_bar(walk, options: argparse.Namespace):
    """Yield the steps of a sampler. Show a progress bar if the output goes to a terminal."""
    from tqdm import tqdm

    return tqdm(walk, total=options.steps, disable=not sys.stderr.isatty())


def output_paths(output: Path, number: int, every_step: bool, force: bool = False) -> list[Path]:
    """The paths of the pictures to draw: the output itself, or output-1, output-2, …

    If force is not set, existing files are kept. If the path of a single picture exists, the
    picture is named output-2, output-3 and so on. Several pictures get the next numbers that are
    all free. A message shows the new names. The function is called before the first picture is
    drawn, so that no work is lost.

    Raises ValueError if the output is not a PNG, if the number is out of range, or if a path cannot
    be written.
    """
    if number < 1:
        raise ValueError(f"the number of pictures must be 1 or more, got {number}.")
    if number > MOST_PICTURES:
        raise ValueError(f"one command draws at most {MOST_PICTURES:,} pictures, got {number:,}.")
    if output.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG: name the output {output.stem}.png.")
    first = 1
    paths = numbered_paths(output, number, first)
    while not force and (there := [one for one in all_outputs(paths, every_step) if one.is_file()]):
        first, taken = first + 1, there[0]
        paths = numbered_paths(output, number, first)
    for path in all_outputs(paths, every_step):
        check_writable(path)
    if first > 1:
        print_message(f"{taken} exists: minisd draws {name_range(paths)} (--force overwrites).")
    return paths


def numbered_paths(output: Path, number: int, first: int) -> list[Path]:
    """The paths of `number` pictures. Their numbers begin with `first`, as in output-3, output-4.

    If a single picture has the number 1, its path is the output itself.
    """
    if number == 1 and first == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(first, first + number)]


def all_outputs(paths: list[Path], every_step: bool) -> list[Path]:
    """All files to write: the pictures and, if every_step is true, one more file for each picture.

    This file is called a strip. It shows the guesses of all steps in one row.
    """
    return paths + [strip_path(path) for path in paths if every_step]


def name_range(paths: list[Path]) -> str:
    """The name of one file, or the first and the last name of several."""
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"


def check_writable(path: Path) -> None:
    """Raise ValueError if this path cannot be written. An existing file is not changed."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it with -o.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write over {path}: choose another name with -o.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"cannot write into the folder {path.parent} ({error.strerror}): "
            "choose another place with -o."
        ) from error


def write_png(picture, path: Path, settings: dict) -> None:
    """Save the picture with its settings inside, and print its path.

    The text chunk "minisd" holds the settings as JSON. The chunk "parameters" holds them in
    the form of the AUTOMATIC1111 web UI, for other programs.

    Raises ValueError if the file cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    from minisd.cli.a1111_metadata import parameters_text
    from minisd.files.whole_files import save_picture

    info = PngInfo()
    info.add_text("minisd", json.dumps(settings))
    info.add_text("parameters", parameters_text(settings))
    save_picture(picture, path, pnginfo=info)
    print_results(path)


def strip_path(path: Path) -> Path:
    """The path of a picture's strip. The strip shows the guesses of all steps."""
    return path.with_stem(f"{path.stem}-steps")
