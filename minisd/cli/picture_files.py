"""Pictures in and out: opened, made to fit, written with their settings inside."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from minisd.cli.messages import print_message, print_results

MOST_PICTURES = 10_000  # of one command: their names are chosen before the first is drawn


def open_input(path: Path):
    """The picture of a file, upright: see minisd/files/pictures.py. ValueError: there is none."""
    from minisd.files.pictures import open_picture as opened

    return opened(path)


STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of all but WebP


def is_picture(path: Path) -> bool:
    """Whether its first bytes are those of a kind that opens; its name plays no part.

    A .safetensors begins with the length of its header, which may spell a picture's first bytes.
    """
    with open(path, "rb") as file:
        start = file.read(12)
    return (start.startswith(STARTS) and start[8:9] != b"{") or start[8:] == b"WEBP"


def fitting_size(
    size: tuple[int, int], options: argparse.Namespace, multiple: int
) -> tuple[int, int]:
    """The width and height to draw: as asked, else the picture's, to the nearest that fit."""
    asked = (options.width, options.height)
    nearest = [max(multiple, round(length / multiple) * multiple) for length in size]
    chosen = tuple(b if a is None else a for a, b in zip(asked, nearest))
    if min(chosen) < 1:
        raise ValueError(f"a picture of {chosen[0]} x {chosen[1]} pixels is none: ask for more.")
    if chosen != size:
        report_resize("picture", size, chosen)
    return chosen


def report_resize(what: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    sizes = " to ".join(f"{width} x {height}" for width, height in (old, new))
    print_message(f"the {what} is resized from {sizes}.")


def progress_bar(walk, options: argparse.Namespace):
    from tqdm import tqdm

    return tqdm(walk, total=options.steps, disable=not sys.stderr.isatty())


def output_paths(output: Path, number: int, every_step: bool, force: bool = False) -> list[Path]:
    """Where the pictures go: the output itself, or output-1, output-2, …

    A picture that is there stays, unless force: the new one is called output-2, and several take
    the next numbers that are free, all together. That is said.
    ValueError: not a PNG, no pictures asked for, or a place where nothing can be written. Asked
    before the work, so that none is lost.
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
        print_message(f"{taken} exists: drawing {name_range(paths)} (--force overwrites).")
    return paths


def numbered_paths(output: Path, number: int, first: int) -> list[Path]:
    """`number` names from output-first on; a lone first one is the output itself."""
    if number == 1 and first == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(first, first + number)]


def all_outputs(paths: list[Path], every_step: bool) -> list[Path]:
    """All that will be written: the pictures, and their strips."""
    return paths + [strip_path(path) for path in paths if every_step]


def name_range(paths: list[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"


def check_writable(path: Path) -> None:
    """Raise ValueError unless a file of this name can be written, without touching one there."""
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
    """Save the picture with its settings: as JSON in the text chunk named minisd, and in one named
    parameters, as other programs read them. ValueError: the file cannot be written.
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
    return path.with_stem(f"{path.stem}-steps")
