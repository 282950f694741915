"""Opens pictures, chooses sizes and file names, and writes pictures with their settings inside."""

import argparse
import json
import os
import tempfile
from pathlib import Path

from minisd.cli.messages import print_message, print_results

MOST_PICTURES = 10_000  # of one command, which chooses all names before it draws the first picture


def open_input(path: Path):
    """Open a picture and turn it upright. Raises ValueError if the file is not a picture."""
    from minisd.files.picture_files import open_picture

    return open_picture(path)


# The first bytes of all kinds of pictures except WebP.
STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def is_picture(path: Path) -> bool:
    """Whether a file begins like a picture. The name of the file does not matter.

    A .safetensors file begins with eight bytes that state the length of its header. These eight
    bytes may look like the start of a picture. But the ninth byte is always a brace, {.
    """
    with open(path, "rb") as file:
        start = file.read(12)
    return (start.startswith(STARTS) and start[8:9] != b"{") or start[8:] == b"WEBP"


def fitting_size(
    size: tuple[int, int], options: argparse.Namespace, multiple: int
) -> tuple[int, int]:
    """The width and height of the picture to draw. Prints a message if the input is resized.

    If --width or --height is not given, that side of the input picture is rounded to a multiple of
    `multiple`.

    size: width and height of the input picture
    """
    width, height = (max(multiple, round(length / multiple) * multiple) for length in size)
    width = width if options.width is None else options.width
    height = height if options.height is None else options.height
    if (width, height) != size:
        report_resize("picture", size, (width, height))
    return width, height


def report_resize(what: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Print a message that a picture is resized.

    what: the name of the picture in the message: "picture" or "hint"
    old, new: width and height before and after
    """
    sizes = " to ".join(f"{width} x {height}" for width, height in (old, new))
    print_message(f"the {what} is resized from {sizes}.")


def output_paths(output: Path, number: int, every_step: bool, force: bool = False) -> list[Path]:
    """The paths of the pictures to draw: the output itself, or output-1, output-2, …

    If `force` is false, no existing file is overwritten. For example, suppose that cat.png exists.
    Then a single picture is saved as cat-2.png, or as cat-3.png if cat-2.png exists, and so on.
    Several pictures get consecutive numbers that are all free, such as cat-4.png to cat-6.png. A
    message states the new names.

    All paths are checked before the first picture is drawn, so that no work is lost.

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

    If `number` and `first` are 1, the path of the picture is the output itself.
    """
    if number == 1 and first == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(first, first + number)]


def all_outputs(paths: list[Path], every_step: bool) -> list[Path]:
    """All files to write: the pictures, and also their strips if `every_step` is true.

    A strip is a second file for each picture. It shows the guesses of all steps in one row.
    """
    return paths + [strip_path(path) for path in paths if every_step]


def name_range(paths: list[Path]) -> str:
    """The files' names in words: "cat.png" for one file, "cat-1.png to cat-9.png" for several."""
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"


def check_writable(path: Path) -> None:
    """Raise ValueError if this path cannot be written. An existing file is not changed."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it with -o.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be overwritten: choose another name with -o.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"no file can be written into the folder {path.parent} ({error.strerror}): "
            "choose another place with -o."
        ) from error


def write_png(picture, path: Path, settings: dict) -> None:
    """Save the picture with its settings inside, and print its path.

    The text chunk "minisd" of the PNG holds the settings as JSON. The text chunk "parameters" holds
    the settings in the form of the AUTOMATIC1111 web UI, for other programs.

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
    """The path of a picture's strip. The strip shows the guesses of all steps in one row."""
    return path.with_stem(f"{path.stem}-steps")
